"""QK-norm, partial rotation and the paged write on a GPU: one program for a few heads of a row.

Bytes, bf16: T * (A + 2 * A_kv) * D * 2 read and as many written (32 + 2 * 4 heads of 128: 20 KB a row, twice 10 KB),
R * 4 of angles a program; an FP8 cache takes half of what is written into it. FLOP: about 10 * T * (A + A_kv) * D.
64 rows of AntAngelMed: 1.3 MB, 0.33 us at 4.0 TB/s (H20 datasheet). A row's answer depends on nothing but the row.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.launch import launch_options
from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.paged_attention import KVLayer

BLOCK_HEADS = 8  # heads of a program: five programs a row of 32 + 2 * 4 heads
OPTIONS = launch_options(num_warps=8)  # a warp a head: sums need no shared memory


@launched
@triton.jit
def qk_norm_rope_kv_kernel(
    qkv: tl.tensor,
    query_weight: tl.tensor,
    key_weight: tl.tensor,
    cos_sin: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    key_scale: tl.tensor,
    value_scale: tl.tensor,
    query: tl.tensor,
    eps: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_POW2: tl.constexpr,
    ROTARY: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    NORM_QUERY: tl.constexpr,
    NORM_KEY: tl.constexpr,
    SCALED: tl.constexpr,
) -> None:
    """BLOCK_HEADS heads of one row of qkv [T, (HEADS + 2 * KV_HEADS) * DIM], in the order all Q, all K, all V."""
    await_previous()
    HALF: tl.constexpr = ROTARY // 2
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    channel = tl.arange(0, DIM_POW2)[None, :]
    # The channel that each one is rotated with: i + R / 2 for the first half, i - R / 2 for the second.
    partner = tl.where(channel < HALF, channel + HALF, tl.where(channel < ROTARY, channel - HALF, channel))
    exists = (head < HEADS + 2 * KV_HEADS) & (channel < DIM)
    is_query = head < HEADS
    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS)

    # What no cache holds in a decode comes first: behind a use of other loads it would begin when those have arrived.
    position, slot = tl.load(positions + row).to(tl.int64), tl.load(slots + row).to(tl.int64)
    if NORM_QUERY or NORM_KEY:
        weight = tl.where(is_query, query_weight, key_weight)
        is_normed = ((is_query & NORM_QUERY) | (is_key & NORM_KEY)) & exists
        gain = tl.load(weight + channel, mask=is_normed, other=0.0).to(tl.float32)
        other_gain = tl.load(weight + partner, mask=is_normed, other=0.0).to(tl.float32)
    start = qkv + row * ((HEADS + 2 * KV_HEADS) * DIM) + head * DIM
    raw = tl.load(start + channel, mask=exists, other=0.0)
    other = tl.load(start + partner, mask=exists, other=0.0).to(tl.float32)
    rotates = channel < ROTARY
    angles = cos_sin + position * ROTARY + channel % HALF
    cos = tl.load(angles, mask=rotates, other=1.0)
    sin = tl.load(angles + HALF, mask=rotates, other=0.0)

    dtype: tl.constexpr = raw.dtype
    own = raw.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(own * own, 1) / DIM + eps)[:, None]
    if NORM_QUERY or NORM_KEY:
        own = tl.where(is_normed, _normed(own, rstd, gain, dtype), own)
        other = tl.where(is_normed, _normed(other, rstd, other_gain, dtype), other)
    turned = tl.where(channel < HALF, own * cos - other * sin, own * cos + other * sin)
    out = tl.where(rotates, turned, own).to(dtype)

    tl.store(query + row * (HEADS * DIM) + head * DIM + channel, out, mask=is_query & exists)
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    kv_head = (head - HEADS) % KV_HEADS
    place = ((block * KV_HEADS + kv_head) * BLOCK_SIZE + offset) * DIM + channel
    is_value = head >= HEADS + KV_HEADS
    if SCALED:
        key = _stored(out, tl.load(key_scale + kv_head, mask=is_key, other=1.0))
        tl.store(key_cache + place, key, mask=is_key & exists)
        value = _stored(raw, tl.load(value_scale + kv_head, mask=is_value, other=1.0))
        tl.store(value_cache + place, value, mask=is_value & exists)
    else:
        tl.store(key_cache + place, out, mask=is_key & exists)
        tl.store(value_cache + place, raw, mask=is_value & exists)


@triton.jit
def _stored(values: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """Values over the scale of their head as e4m3; the conversion saturates."""
    return tl.div_rn(values.to(tl.float32), tl.broadcast_to(scale, values.shape)).to(tl.float8e4nv)


@triton.jit
def _normed(values: tl.tensor, rstd: tl.tensor, gain: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """Rounded to the dtype after the norm, and again after the product with the weight, as the model defines it."""
    return (gain * (values * rstd).to(dtype).to(tl.float32)).to(dtype).to(tl.float32)


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
    num_rows, num_heads = qkv.shape[0], qkv.shape[1] // kv.head_dim
    query = qkv.new_empty(num_rows, num_heads - 2 * kv.num_kv_heads, kv.head_dim)
    if num_rows:
        qk_norm_rope_kv_kernel[(num_rows, -(-num_heads // BLOCK_HEADS))](
            *(qkv, qkv if query_weight is None else query_weight, qkv if key_weight is None else key_weight),
            *(cos_sin, positions, slots, kv.key, kv.value),
            *(cos_sin if scale is None else scale for scale in (kv.key_scale, kv.value_scale)),
            *(query, eps),
            **constants(num_heads, kv, cos_sin.shape[1], (query_weight is not None, key_weight is not None)),
            **OPTIONS,
        )
    return query


def constants(num_heads: int, kv: KVLayer, rotary: int, has_norms: tuple[bool, bool]) -> dict[str, int | bool]:
    """What the kernel is compiled with; `num_heads` counts all of Q, K and V."""
    cache_shape = (kv.num_kv_heads, kv.head_dim, kv.block_size)
    return _constants(num_heads, cache_shape, rotary, has_norms, kv.key_scale is not None)


@cache
def _constants(
    num_heads: int, cache_shape: tuple[int, int, int], rotary: int, has_norms: tuple[bool, bool], is_scaled: bool
) -> dict[str, int | bool]:
    num_kv_heads, head_dim, block_size = cache_shape
    return {
        "HEADS": num_heads - 2 * num_kv_heads,
        "KV_HEADS": num_kv_heads,
        "DIM": head_dim,
        "DIM_POW2": triton.next_power_of_2(head_dim),
        "ROTARY": rotary,
        "BLOCK_SIZE": block_size,
        "BLOCK_HEADS": BLOCK_HEADS,
        "NORM_QUERY": has_norms[0],
        "NORM_KEY": has_norms[1],
        "SCALED": is_scaled,
    }
