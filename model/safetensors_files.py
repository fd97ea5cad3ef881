"""The safetensors files of one checkpoint folder: their headers checked, tensors read by their exact bytes.

Plain reads into fresh memory, not a memory map: what is read is what is counted, pages of other ranks' experts never
enter this process, and a file that shrinks while it is read is an error instead of a bus fault. Threads may read.
Source: the safetensors format (8-byte little-endian header length, JSON header, data).
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from model.errors import CheckpointError
from model.strict_json import parse_object, read_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies. `offset` counts from the start of the file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def place(self) -> tuple[str, int]:
        """What tensors are sorted by to lie as in their files."""
        return self.file.name, self.offset


class SafetensorsFiles:
    """All tensors of a folder by name. A context manager: files stay open until it ends."""

    def __init__(self, directory: str | Path) -> None:
        self.bytes_read = 0
        self.tensors: dict[str, StoredTensor] = {}
        self._sizes: dict[Path, int] = {}
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()
        folder = Path(directory)
        index = _weight_map(folder)
        for file in sorted(set(index.values())) if index is not None else [SINGLE]:
            self._sizes[folder / file], found = _header(folder / file)
            for name, stored in found.items():
                if name in self.tensors:
                    raise CheckpointError(f"{name}: stored twice, in {self.tensors[name].file.name} and {file}")
                self.tensors[name] = stored
        if index is not None:
            _check_index(index, self.tensors)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read(self, name: str) -> torch.Tensor:
        """One tensor as stored, in memory of its own. Raises CheckpointError where the file ends too early."""
        stored = self.tensors[name]
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        if stored.num_bytes:
            self.fill(stored.file, stored.offset, tensor.reshape(-1).view(torch.uint8).numpy().data)
        return tensor

    def fill(self, file: Path, start: int, view: memoryview) -> None:
        """Bytes [start, start + len(view)) of a file. Raises CheckpointError that names the tensor they end in."""
        descriptor, done = self._descriptor(file), 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done:]], start + done)
            except OSError as error:
                name = self._name_at(file, start + done)
                raise CheckpointError(f"{file}: {name}: not readable: {error.strerror}") from None
            if count == 0:
                raise CheckpointError(f"{file}: ends inside {self._name_at(file, start + done)}")
            done += count
        with self._lock:
            self.bytes_read += done

    def _name_at(self, file: Path, position: int) -> str:
        """The tensor that a byte of a file belongs to."""
        return next(
            name
            for name, stored in self.tensors.items()
            if stored.file == file and stored.offset <= position < stored.offset + stored.num_bytes
        )

    def _descriptor(self, file: Path) -> int:
        with self._lock:
            if file not in self._descriptors:
                with _readable(file):
                    self._descriptors[file] = os.open(file, os.O_RDONLY)
                size = os.fstat(self._descriptors[file]).st_size
                if size != self._sizes[file]:
                    raise CheckpointError(
                        f"{file}: {size:,} bytes, {self._sizes[file]:,} when its header was read: it is being changed"
                    )
            return self._descriptors[file]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file. Raises CheckpointError that names the file, and the tensor at fault."""
    return _header(file)[1]


def _header(file: Path) -> tuple[int, dict[str, StoredTensor]]:
    """The bytes of a file, and its tensors."""
    with _readable(file), open(file, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(f"{file}: not a safetensors file, or cut short (header of {length} bytes in {size})")
        header = parse_object(stream.read(length), file)
    header.pop("__metadata__", None)
    tensors = {name: _stored(file, name, entry, 8 + length) for name, entry in header.items()}
    _check_extents(file, tensors, 8 + length, size)
    return size, tensors


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{file}: not readable: {error.strerror}") from None


def _stored(file: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        are_sizes = all(isinstance(n, int) and n >= 0 for n in (*shape, start, end))
    except (TypeError, KeyError, ValueError):
        are_sizes = False
    if not are_sizes:
        raise CheckpointError(f"{file}: {name}: header entry is malformed: {entry!r}")
    if dtype not in _DTYPES:
        raise CheckpointError(f"{file}: {name}: dtype {dtype} is not known here")
    stored = StoredTensor(file, _DTYPES[dtype], shape, data_start + start)
    if end - start != stored.num_bytes:
        raise CheckpointError(f"{file}: {name}: {end - start} bytes stored for {dtype} {list(shape)}")
    return stored


def _check_extents(file: Path, tensors: Mapping[str, StoredTensor], data_start: int, size: int) -> None:
    """Tensors must fill the data part without gap or overlap, as the format says."""
    expected = data_start
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if stored.offset != expected:
            raise CheckpointError(f"{file}: {name}: starts at byte {stored.offset}, not at {expected}")
        expected += stored.num_bytes
        if expected > size:
            raise CheckpointError(f"{file}: cut short: {name} needs bytes up to {expected}, the file has {size}")


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Tensor name -> file of a sharded checkpoint; None for a single file."""
    if (folder / SINGLE).exists() or not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise CheckpointError(f"{folder}: holds neither {SINGLE} nor {INDEX}")
        return None
    index = read_object(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise CheckpointError(f"{folder / INDEX}: weight_map is missing or empty")
    for name, file in index.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{folder / INDEX}: weight_map.{name}: {file!r} is not the name of a file beside it")
    return index


def _check_index(index: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    for name, file in index.items():
        if name not in tensors:
            raise CheckpointError(f"{name}: {INDEX} promises it in {file}, where it is not")
    for name, stored in tensors.items():
        if index.get(name) != stored.file.name:
            raise CheckpointError(f"{name}: stored in {stored.file.name}, but {INDEX} says {index.get(name)}")
