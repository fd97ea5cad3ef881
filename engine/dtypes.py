"""The configuration's precisions as torch knows them. Apart from `engine.config`, which needs no torch."""

from __future__ import annotations

import torch

from engine.config import EngineConfig, KVPrecision, Precision

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}


def activation_dtype(config: EngineConfig) -> torch.dtype:
    """Of activations, and of the weights that are not FP8."""
    return _DTYPES[config.precision]


def kv_dtype(config: EngineConfig) -> torch.dtype:
    """Of keys and values in the cache."""
    return torch.float8_e4m3fn if config.kv_precision is KVPrecision.FP8 else activation_dtype(config)
