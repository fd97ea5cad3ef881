"""What the kernels compute, in fp64 and by the formulas alone (model-spec §2 and §4); nothing here calls a kernel."""

from __future__ import annotations

import torch

from kernels.quantise.formats import FP8_BLOCK, FP8_MAX

Pair = tuple[torch.Tensor, torch.Tensor]
Stored = tuple[torch.Tensor, torch.Tensor | None]  # a weight and its scales, if it is FP8


def quantised(x: torch.Tensor, group: int) -> torch.Tensor:
    """What e4m3 leaves of x [T, K] when each `group` channels share a scale, in fp64; K is a multiple of `group`."""
    parts = x.float().unflatten(1, (-1, group))
    scales = (parts.abs().amax(2, keepdim=True) / FP8_MAX).clamp_min(1e-12)
    kept: torch.Tensor = (parts / scales).to(torch.float8_e4m3fn).double() * scales.double()
    return kept.flatten(1)


def dequantised(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """A weight [N, K] in fp64, times the scales of its outputs or of its blocks."""
    if scale is None:
        return weight.double()
    if scale.shape[1] == 1 and scale.shape[0] == weight.shape[0]:
        return weight.double() * scale.double()
    rows = scale.double().repeat_interleave(FP8_BLOCK, 0)[: weight.shape[0]]
    return weight.double() * rows.repeat_interleave(FP8_BLOCK, 1)[:, : weight.shape[1]]


def linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """Rows [T, K] times a weight [N, K]; rows that meet FP8 are quantised in its format."""
    if scale is None:
        return x.double() @ weight.double().T
    group = x.shape[1] if scale.shape[0] == weight.shape[0] else FP8_BLOCK
    return quantised(x, group) @ dequantised(weight, scale).T


def swiglu(x: torch.Tensor, gate: Stored, up: Stored, down: Stored) -> torch.Tensor:
    """One expert: down(silu(gate x) * up x), the product rounded to the dtype of x."""
    inner = torch.nn.functional.silu(linear(x, *gate)) * linear(x, *up)
    return linear(inner.to(x.dtype), *down)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Over the last axis."""
    x = x.double()
    return weight.double() * x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()


def rotated(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Heads [T, A, D] by angles [T, R], cosines then sines: channel i turns with i + R / 2, those from R on pass."""
    half = angles.shape[1] // 2
    cos, sin = angles[:, None, :half].double(), angles[:, None, half:].double()
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def attention(query: torch.Tensor, keys_values: Pair, first: int) -> torch.Tensor:
    """Causal attention of query [T, A, D] at positions `first`.. over keys and values [N, A_kv, D]; [T, A * D]."""
    repeats = query.shape[1] // keys_values[0].shape[1]
    key, value = (part.double().repeat_interleave(repeats, 1) for part in keys_values)
    scores = torch.einsum("tad,nad->atn", query.double(), key) * query.shape[2] ** -0.5
    places = torch.arange(first, first + len(query))[:, None]
    scores = scores.masked_fill(torch.arange(len(key)) > places, float("-inf"))
    return torch.einsum("atn,nad->tad", scores.softmax(-1), value).flatten(1)


def choose(scores: torch.Tensor, bias: torch.Tensor, groups: tuple[int, int], top_k: int) -> torch.Tensor:
    """The `top_k` best biased scores [T, E] of the best `groups[1]` of `groups[0]` groups, by two sorts; ids [T, K]."""
    biased = scores + bias.double()
    grouped = biased.unflatten(1, (groups[0], -1))
    kept = grouped.topk(2, -1).values.sum(-1).topk(groups[1], -1).indices
    is_kept = torch.zeros(len(scores), groups[0], dtype=torch.bool).scatter_(1, kept, True)
    limited: torch.Tensor = grouped.masked_fill(~is_kept[..., None], float("-inf")).flatten(1)
    return limited.topk(top_k, -1).indices


def interval_miss(logits: torch.Tensor, token: int, point: float, limits: tuple[float, int, float]) -> float:
    """How far `point` lies outside the drawn token's share of one row's distribution; `limits`: temperature, k, p."""
    temperature, top_k, top_p = limits
    mass = (logits.double() / temperature).softmax(-1)
    order = torch.arange(len(mass))
    if top_k or top_p < 1:
        order = mass.argsort(descending=True, stable=True)
        mass = mass[order]
        mass = torch.where(torch.arange(len(mass)) < (top_k or len(mass)), mass, 0.0)
        mass = torch.where(mass.cumsum(0) - mass < top_p * mass.sum(), mass, 0.0)
    place = int((order == token).nonzero())
    ends = mass.cumsum(0) / mass.sum()
    start = float(ends[place] - mass[place] / mass.sum())
    return max(start - point, point - float(ends[place]), 0.0)
