"""A tiny model in one of the published FP8 formats, and what its weights then mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.fp8_checkpoint import quantise, write_checkpoint
from tests.oracle.tiny_models import TinyModel


def write_fp8(source: TinyModel, folder: Path, quantization: Mapping[str, Any]) -> tuple[TinyModel, dict[str, Tensor]]:
    """The FP8 model in `folder`, whose `tensors` are dequantised fp32; and the tensors as stored."""
    fields = json.loads((source.folder / "config.json").read_text()) | {"quantization_config": quantization}
    config = type(source.config).from_dict(fields)
    stored, meant = quantise(config, source.tensors)
    write_checkpoint(folder, fields, stored)
    return TinyModel(config, folder, meant), stored
