"""Random checkpoints of the tiny shapes, written once per test process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.shapes import shape_dict

# Removed when the interpreter ends.
_FOLDER = tempfile.TemporaryDirectory(prefix="sigmoe-tests-")


@functools.cache
def tiny_checkpoint(name: str) -> Path:
    """An fp32 checkpoint of the shape `name` of model-spec §10."""
    return write_checkpoint(Path(_FOLDER.name) / name, shape_dict(name), torch.float32, seed=11)
