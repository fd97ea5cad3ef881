"""Where a batch is read and written: local paths and fsspec URLs, as file systems and paths in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec.core
from fsspec.implementations.local import LocalFileSystem


class BatchMistake(ValueError):
    """Something about the job as a whole is wrong; the message names the flag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A path in a file system; `name` is as the user wrote it."""

    flag: str
    name: str
    files: Any  # fsspec's AbstractFileSystem
    path: str

    @classmethod
    def of(cls, flag: str, name: str) -> Place:
        """Raises BatchMistake where no file system knows the location."""
        if not name:
            raise BatchMistake(f"{flag}: empty; a path or an fsspec URL is needed")
        try:
            files, path = fsspec.core.url_to_fs(name)
        except (ValueError, ImportError, OSError) as error:
            raise BatchMistake(f"{flag}: {name}: {error}") from None
        return cls(flag=flag, name=name, files=files, path=path)

    @property
    def local(self) -> Path | None:
        """The path where it is on this machine."""
        return Path(self.path) if isinstance(self.files, LocalFileSystem) else None

    def beside(self, suffix: str) -> Place:
        """The neighbour whose name is this one's and `suffix`."""
        path = self.path.rstrip("/") + suffix
        return Place(flag=self.flag, name=self.name.rstrip("/") + suffix, files=self.files, path=path)

    def inside(self, name: str) -> Place:
        """A file in this folder."""
        path = f"{self.path.rstrip('/')}/{name}"
        return Place(flag=self.flag, name=f"{self.name.rstrip('/')}/{name}", files=self.files, path=path)

    def exists(self) -> bool:
        """Whether something is there. Raises BatchMistake where that cannot be found out."""
        try:
            return bool(self.files.exists(self.path))
        except Exception as error:  # every file system has errors of its own
            raise BatchMistake(f"{self.flag}: {self.name}: {error}") from None
