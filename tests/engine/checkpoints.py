"""Random checkpoints of the tiny shapes, written once per test process, and the one that ships."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.shapes import shape_dict

# Removed when the interpreter ends.
_FOLDER = tempfile.TemporaryDirectory(prefix="sigmoe-tests-")


SHIPPED = "sigmoe-demo"  # in the place of a shape: trained, with draft models that are often right


def shipped_folder() -> Path:
    """Where the model that ships lies."""
    return Path(__file__).parents[2] / "models" / SHIPPED


@functools.cache
def tiny_checkpoint(name: str) -> Path:
    """An fp32 checkpoint of the shape `name` of model-spec §10, or the one that ships."""
    if name == SHIPPED:
        return shipped_folder()
    return write_checkpoint(Path(_FOLDER.name) / name, shape_dict(name), torch.float32, seed=11)
