"""Rotary embedding: the table of cosines and sines, with or without YaRN (model-spec §2)."""

from __future__ import annotations

import math

import torch

from model.config import Rope


def cos_sin_table(rope: Rope, num_positions: int, device: torch.device | None = None) -> torch.Tensor:
    """Cosines then sines of the rotated half of a head: [P, rotary_dim] fp32.

    YaRN's factor m multiplies both, so rotary scores scale by m²; the dimensions passed through do not.
    """
    # fp32 throughout, as the published models were trained; in bf16 far positions would share angles.
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(rope))
    return (torch.cat([angles.cos(), angles.sin()], dim=-1) * attention_factor(rope)).to(device)


def inverse_frequencies(rope: Rope) -> torch.Tensor:
    """Angle per position of each rotated pair: [rotary_dim / 2] fp32."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    plain = 1.0 / rope.rope_theta**exponents
    if rope.rope_type == "default":
        return plain
    ramp = _ramp(rope)
    return plain * (1 - ramp) + plain / rope.factor * ramp


def attention_factor(rope: Rope) -> float:
    """YaRN's m: given, or from the mscale pair, or 0.1 ln(factor) + 1."""
    if rope.rope_type == "default":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _ramp(rope: Rope) -> torch.Tensor:
    """How far each pair is interpolated: 0 for those that turn fast, 1 for those that turn slowly."""

    def pair_of(num_turns: float) -> float:
        wavelengths = rope.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return rope.rotary_dim * math.log(wavelengths) / (2 * math.log(rope.rope_theta))

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001  # the ramp becomes a step
    pairs = torch.arange(rope.rotary_dim // 2, dtype=torch.float32)
    return ((pairs - low) / (high - low)).clamp(0, 1)
