"""docs/api.md from the comments in proto/."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

_Message = descriptor_pb2.DescriptorProto
_Field = descriptor_pb2.FieldDescriptorProto
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6  # field numbers in FileDescriptorProto, which source paths are made of
_TYPE_NAMES = {number: name.removeprefix("TYPE_").lower() for name, number in _Field.Type.items()}


def render(proto_root: Path) -> str:
    """The whole page: services first, then messages and enums, each with the comment above it."""
    files = _parse(proto_root)
    parts = ["# gRPC API\n\nMade from the comments in `proto/` by `make docs`.\n"]
    for file in sorted(files, key=lambda file: not file.service):
        comments = {
            tuple(location.path): location.leading_comments.strip() for location in file.source_code_info.location
        }
        parts += _services(file, comments)
        parts += _messages(file, comments)
        parts += _enums(file, comments)
    return "\n".join(parts)


def _parse(root: Path) -> list[descriptor_pb2.FileDescriptorProto]:
    sources = sorted(str(path.relative_to(root)) for path in root.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        include = Path(protoc.__file__).parent / "_proto"
        arguments = ["protoc", f"-I{root}", f"-I{include}", "--include_source_info", f"--descriptor_set_out={out}"]
        code = protoc.main([*arguments, *sources])
        assert code == 0, f"protoc ended with {code}"
        return list(descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file)


def _services(file: descriptor_pb2.FileDescriptorProto, comments: dict[tuple[int, ...], str]) -> Iterator[str]:
    for s, service in enumerate(file.service):
        yield f"## {file.package}.{service.name}\n\n{comments[_SERVICE, s]}\n"
        yield "| call | request | response | |\n|---|---|---|---|"
        for m, method in enumerate(service.method):
            stream = "stream of " if method.server_streaming else ""
            text = _cell(comments[_SERVICE, s, 2, m])
            yield f"| {method.name} | {_short(method.input_type)} | {stream}{_short(method.output_type)} | {text} |"
        yield ""


def _messages(file: descriptor_pb2.FileDescriptorProto, comments: dict[tuple[int, ...], str]) -> Iterator[str]:
    for m, message in enumerate(file.message_type):
        yield f"### {message.name}\n\n{comments[_MESSAGE, m]}\n"
        if message.field:
            yield "| field | type | |\n|---|---|---|"
        for f, field in enumerate(message.field):
            yield f"| {field.name} | {_type(message, field)} | {_cell(comments[_MESSAGE, m, 2, f])} |"
        yield ""


def _enums(file: descriptor_pb2.FileDescriptorProto, comments: dict[tuple[int, ...], str]) -> Iterator[str]:
    for e, enum in enumerate(file.enum_type):
        yield f"### {enum.name}\n\n{comments[_ENUM, e]}\n\n| value | |\n|---|---|"
        for v, value in enumerate(enum.value):
            yield f"| {value.name} | {_cell(comments[_ENUM, e, 2, v])} |"
        yield ""


def _type(message: _Message, field: _Field) -> str:
    entries = {f".{entry.name}": entry for entry in message.nested_type if entry.options.map_entry}
    entry = next((entry for name, entry in entries.items() if field.type_name.endswith(name)), None)
    if entry is not None:
        return f"map of {_plain(entry.field[0])} to {_plain(entry.field[1])}"
    label = "repeated " if field.label == _Field.LABEL_REPEATED else "optional " if field.proto3_optional else ""
    one_of = "" if field.proto3_optional or not field.HasField("oneof_index") else "one of "
    return f"{label}{one_of}{_plain(field)}"


def _plain(field: _Field) -> str:
    return _short(field.type_name) if field.type_name else _TYPE_NAMES[field.type]


def _short(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _cell(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|")
