"""QK-norm and rotation against fp64; what is written is what attention reads (see test_paged_attention.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.paged_attention import KVLayer, allocate_kv_layer
from kernels.rope_kv import qk_norm_rope_kv

from .paged_world import EPS, HEADS, KV_HEADS, make_world


def exact_heads(heads: torch.Tensor, weight: torch.Tensor | None, cos_sin: torch.Tensor) -> torch.Tensor:
    """Heads [T, n, D] normed where there is a weight, and rotated, all in fp64."""
    u = heads.double()
    if weight is not None:
        u = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + EPS) * weight.double()
    cos, sin = cos_sin.double()[:, None].chunk(2, -1)
    half = cos.shape[-1]
    a, b, rest = u[..., :half], u[..., half : 2 * half], u[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


@pytest.mark.parametrize("head_dim", [16, 40, 64])
@pytest.mark.parametrize("length", [1, 19])
def test_queries_match_fp64(
    backend: str, dtype: torch.dtype, draw: torch.Generator, head_dim: int, length: int
) -> None:
    world = make_world(draw, [length], 16, head_dim, dtype)
    query = world.write(0, 0, length)
    heads = world.qkv[0].view(length, HEADS + 2 * KV_HEADS, head_dim)
    truth = exact_heads(heads[:, :HEADS], world.weights[0], world.cos_sin[:length])
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(query.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("head_dim", [16, 40, 128])
def test_without_a_norm_heads_are_rotated_as_they_come(
    backend: str, dtype: torch.dtype, draw: torch.Generator, head_dim: int
) -> None:
    world = replace(make_world(draw, [19], 16, head_dim, dtype), weights=(None, None))
    query = world.write(0, 0, 19)
    heads = world.qkv[0].view(19, HEADS + 2 * KV_HEADS, head_dim)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2  # one rounding
    truth = exact_heads(heads[:, :HEADS], None, world.cos_sin[:19])
    torch.testing.assert_close(query.double(), truth, rtol=tolerance, atol=tolerance)
    rotary = world.cos_sin.shape[1]
    assert torch.equal(query[..., rotary:], heads[:, :HEADS, rotary:])
    assert torch.equal(world.write(0, 7, 8), query[7:8])


def test_values_are_kept_as_they_are(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    world = make_world(draw, [21], 4, 32, dtype)
    world.write(0, 0, 21)
    values = world.qkv[0].view(21, HEADS + 2 * KV_HEADS, 32)[:, HEADS + KV_HEADS :]
    for position in range(21):
        block, offset = int(world.tables[0, position // 4]), position % 4
        assert torch.equal(world.kv.value[block, :, offset], values[position])


def test_no_rows_is_valid_and_other_blocks_stay(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    world = make_world(draw, [8], 8, 16, dtype)
    before = world.kv.value.clone()
    assert world.write(0, 0, 0).shape == (0, HEADS, 16)
    assert torch.equal(world.kv.value.nan_to_num(), before.nan_to_num())
    world.write(0, 3, 5)
    assert world.kv.value[-1].isnan().all()


def test_a_row_does_not_know_its_neighbours(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    world = make_world(draw, [50], 16, 64, dtype)
    whole = world.write(0, 0, 50)
    assert torch.equal(world.write(0, 7, 8), whole[7:8])
    assert torch.equal(world.write(0, 20, 43), whole[20:43])


def keys_of(kv: KVLayer) -> torch.Tensor:
    """[blocks, A_kv, block_size, D], also where they lie transposed, bf16 in pairs of channels."""
    pair = 2 if kv.key.dtype == torch.bfloat16 else 1
    shape = (*kv.key.shape[:2], kv.head_dim // pair, kv.block_size, pair)
    return kv.key if kv.is_plain else kv.key.view(shape).transpose(2, 3).flatten(3)


def test_an_fp8_cache_takes_heads_over_their_scales(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    """To the last bit what a cache of the rows' dtype holds, divided, saturated and rounded."""
    world = make_world(draw, [13], 4, 32, dtype)
    plain = allocate_kv_layer(5, 4, KV_HEADS, 32, dtype)
    scales = (torch.tensor([0.01, 0.004]), torch.tensor([0.03, 0.001]))
    fp8 = allocate_kv_layer(5, 4, KV_HEADS, 32, torch.float8_e4m3fn)
    assert fp8.key_scale is not None and fp8.value_scale is not None
    fp8.key_scale.copy_(scales[0]), fp8.value_scale.copy_(scales[1])
    query = replace(world, kv=plain).write(0, 0, 13)
    assert torch.equal(replace(world, kv=fp8).write(0, 0, 13), query)
    for kept, scale, exact in ((fp8.key, scales[0], keys_of(plain)), (fp8.value, scales[1], plain.value)):
        quotient = (exact.float() / scale[:, None, None]).clamp(-448, 448)
        assert (quotient.abs() == 448).any() and torch.equal(kept.float(), quotient.to(torch.float8_e4m3fn).float())


def test_every_fp8_number_is_kept_and_read(backend: str, dtype: torch.dtype) -> None:
    """Each e4m3 number goes in and comes out; what lies between two, and past the last, goes where torch rounds it."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = torch.cat([numbers[numbers == numbers], torch.tensor([448.0, -448.0])])  # 256, without the two NaN
    between = (numbers.sort().values[1:] + numbers.sort().values[:-1]) / 2
    values = torch.cat([numbers, between, torch.tensor([-1e9])])[None].to(dtype).repeat(1, HEADS + 2 * KV_HEADS)
    kv = allocate_kv_layer(1, 4, KV_HEADS, 512, torch.float8_e4m3fn)
    cos_sin, zero = torch.zeros(1, 0), torch.zeros(1, dtype=torch.int32)
    qk_norm_rope_kv(values.contiguous(), None, None, cos_sin, zero, zero, kv, EPS)
    wanted = values[:, :512].float().clamp(-448, 448).to(torch.float8_e4m3fn).float()
    for kept in (kv.key, kv.value):
        assert torch.equal(kept[0, :, 0].float(), wanted.expand(KV_HEADS, 512))


def test_nan_stays_in_its_row(backend: str, dtype: torch.dtype, draw: torch.Generator) -> None:
    world = make_world(draw, [21], 4, 32, dtype)
    world.qkv[0][5] = float("nan")
    is_nan = world.write(0, 0, 21).isnan().flatten(1)
    assert is_nan[5].all() and not is_nan[torch.arange(21) != 5].any()
