"""QK-norm and rotation as their formulas read."""

from __future__ import annotations

import torch

from kernels.paged_attention import KVLayer
from kernels.quantise.formats import FP8_MAX
from kernels.rms_norm.reference import rms_norm


def qk_norm_rope_kv(
    qkv: torch.Tensor,
    query_weight: torch.Tensor | None,
    key_weight: torch.Tensor | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    kv: KVLayer,
    eps: float,
) -> torch.Tensor:
    """See `kernels.rope_kv.qk_norm_rope_kv`; the layer is plain."""
    heads = qkv.unflatten(1, (-1, kv.head_dim))
    num_heads = heads.shape[1] - 2 * kv.num_kv_heads
    query, key, value = torch.split(heads, [num_heads, kv.num_kv_heads, kv.num_kv_heads], 1)
    angles = cos_sin[positions.long()]
    block, offset = slots.long() // kv.block_size, slots.long() % kv.block_size
    kv.key[block, :, offset] = _stored(rotate(_normed(key, key_weight, eps), angles), kv.key_scale)
    kv.value[block, :, offset] = _stored(value, kv.value_scale)
    return rotate(_normed(query, query_weight, eps), angles).contiguous()


def _normed(heads: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    return heads if weight is None else rms_norm(heads, weight, eps)


def _stored(heads: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """Heads [T, A_kv, D] as the cache keeps them."""
    if scale is None:
        return heads
    return (heads.float() / scale[:, None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def rotate(heads: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads [T, heads, D] by cos_sin [T, R], the first R channels in halves."""
    rotary = cos_sin.shape[1]
    cos, sin = cos_sin[:, None].chunk(2, -1)
    halves = [rotary // 2, rotary // 2, heads.shape[2] - rotary]
    first, second, passed = torch.split(heads.float(), halves, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, passed], -1).to(heads.dtype)
