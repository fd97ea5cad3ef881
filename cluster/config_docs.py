"""docs/configuration.md from the configuration tree."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from cluster.config import ENV_PREFIX, Config, section_model

_HEAD = f"""# Configuration

Made from `cluster/config.py` by `make docs`.

`sigmoe serve FILE.yaml` reads these sections. Each key can also be set by an environment variable
(`{ENV_PREFIX}SECTION__KEY`, for instance `{ENV_PREFIX}GATEWAY__PORT=8000`) and by a flag
(`--set section.key=value`); flags win over variables, variables over the file. Unknown keys are refused.
`sigmoe serve --dry-run` shows what a configuration comes to.
"""
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def render() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_sections()])


def _sections() -> Iterator[str]:
    for section, field in Config.model_fields.items():
        model = section_model(field.annotation)
        yield f"## {section}\n\n{model.__doc__}\n"
        yield "| key | type | default | |\n|---|---|---|---|"
        for key, info in model.model_fields.items():
            yield f"| {key} | {_kind(info)} | {_default(info)} | {info.description} |"
        yield ""


def _kind(info: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(rule, name)}"
        for rule in info.metadata
        for name, sign in _BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join([_name(info.annotation), *bounds])


def _name(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return " or ".join(f"`{member.value}`" for member in annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_name(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Annotated:
        return _name(typing.get_args(annotation)[0])
    return "null" if annotation is type(None) else {"str": "text"}.get(annotation.__name__, annotation.__name__)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) or "empty"
