"""Checkpoints that survive a kill: written beside, then renamed; the last two are kept."""

from pathlib import Path
from typing import Any

import torch

KEPT = 2


def save_checkpoint(folder: Path, name: str, step: int, state: dict[str, Any]) -> Path:
    """Write `<name>-<step>.pt`; a kill at any moment leaves the previous one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{step:07d}.pt"
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)
    for old in sorted(folder.glob(f"{name}-*.pt"))[:-KEPT]:
        old.unlink()
    return path


def newest_checkpoint(folder: Path, name: str) -> Path | None:
    """The last one of this phase, if any."""
    return max(folder.glob(f"{name}-*.pt"), default=None)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read tensors and plain values."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
