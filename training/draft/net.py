"""A differentiable EAGLE3 head and one step of its chain, in plain torch: fp32 parameters, bf16 (or any) compute."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.draft.shape import DraftShape
from training.net import rms_norm

_WHOLE_ROWS = 1024  # of a talk, up to which its scores are kept

KeysValues = list[tuple[Tensor, Tensor]]  # of each step so far, [B, A, S, D]


class DraftNet(nn.Module):
    """One layer over (embedding of the next token, state), its norm and its head (speculative-decoding notes §1)."""

    def __init__(self, shape: DraftShape, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        hidden, width = shape.hidden_size, shape.intermediate_size
        queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim

        def matrix(rows: int, columns: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns) * gain * columns**-0.5)

        self.fc = matrix(hidden, len(shape.capture_layers) * hidden)
        self.embedding_norm, self.hidden_norm, self.post_norm, self.norm = (
            nn.Parameter(torch.ones(hidden)) for _ in range(4)
        )
        self.q, self.k, self.v = matrix(queries, 2 * hidden), matrix(keys, 2 * hidden), matrix(keys, 2 * hidden)
        self.o = matrix(hidden, queries, 0.3)
        self.gate, self.up, self.down = matrix(width, hidden), matrix(width, hidden), matrix(hidden, width, 0.3)
        self.head = matrix(shape.vocab_size, hidden)

    def fuse(self, captured: Tensor) -> Tensor:
        """Captured states [B, S, C * H] to the first step's states [B, S, H]."""
        return self._linear(captured.to(self.dtype), self.fc)

    def step(self, states: Tensor, embedded: Tensor, number: int, past: KeysValues) -> Tensor:
        """Step `number` of the chains that start at every row at once; returns the states of the next step.

        states, embedded [B, S, H]. Row i of a later step stands at position i + number. It sees the first step's rows
        as far as row i, and of the later steps only its own chain: what it would find in its cache (training-time
        test, notes §6). `past` grows by this step's keys and values.
        """
        shape = self.shape
        rows = torch.cat(
            [self._norm(embedded.to(self.dtype), self.embedding_norm), self._norm(states, self.hidden_norm)], -1
        )
        query, key, value = (self._heads(rows, weight) for weight in (self.q, self.k, self.v))
        cos, sin = _rotation(shape, number, states)
        query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
        group = shape.num_attention_heads // shape.num_key_value_heads
        past.append((key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)))
        mixed = _attend(query, tuple(past), shape.head_dim**-0.5)
        states = states + self._linear(mixed.transpose(1, 2).flatten(2), self.o)
        inner = self._norm(states, self.post_norm)
        gated = nn.functional.silu(self._linear(inner, self.gate)) * self._linear(inner, self.up)
        return states + self._linear(gated, self.down)

    def logits(self, states: Tensor) -> Tensor:
        """States [..., H] to fp32 logits over the draft vocabulary [..., Vd]."""
        return self._linear(self.normed(states), self.head).float()

    def normed(self, states: Tensor) -> Tensor:
        """States [..., H] as the head reads them."""
        return self._norm(states, self.norm)

    def _heads(self, rows: Tensor, weight: Tensor) -> Tensor:
        heads: Tensor = self._linear(rows, weight).unflatten(-1, (-1, self.shape.head_dim))
        return heads.transpose(1, 2)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight, self.shape.rms_norm_eps)

    @staticmethod
    def _linear(x: Tensor, weight: Tensor) -> Tensor:
        product: Tensor = x @ weight.to(x.dtype).t()
        return product


def _attend(query: Tensor, past: tuple[tuple[Tensor, Tensor], ...], scale: float) -> Tensor:
    """Rows [B, A, S, D] over the first step's rows up to each of them and over their own chains, [B, A, S, D].

    Of long talks a part at a time, worked out again for the gradients: 32 heads over 8,192 rows are 8.6 GB of scores.
    """
    length = query.shape[2]
    if length <= _WHOLE_ROWS:
        return _attend_from(0, query, past, scale)
    parts = [
        checkpoint(_attend_from, begin, query[:, :, begin : begin + _WHOLE_ROWS], past, scale, use_reentrant=False)
        for begin in range(0, length, _WHOLE_ROWS)
    ]
    return torch.cat(parts, 2)


def _attend_from(begin: int, query: Tensor, past: tuple[tuple[Tensor, Tensor], ...], scale: float) -> Tensor:
    """As `_attend`, for the rows from `begin` on, [B, A, R, D]."""
    end = begin + query.shape[2]
    keys, values = (part[:, :, :end] for part in past[0])
    chain = [(keys[:, :, begin:end], values[:, :, begin:end]) for keys, values in past[1:]]
    is_seen = torch.ones(end - begin, end, dtype=torch.bool, device=query.device).tril(begin)
    scores = (query @ keys.transpose(-1, -2)).float().mul(scale).masked_fill(~is_seen, -torch.inf)
    own = [(query * keys).sum(-1, keepdim=True).float().mul(scale) for keys, _ in chain]
    weights = torch.cat([scores, *own], -1).softmax(-1).to(query.dtype)
    mixed = weights[..., :end] @ values
    for place, (_, values) in enumerate(chain):
        mixed = mixed + weights[..., end + place, None] * values
    return mixed


def _rotation(shape: DraftShape, first: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [S, D / 2] of the positions from `first` on, for rows [B, S, ...]."""
    half = shape.head_dim // 2
    frequencies = shape.rope_theta ** (-torch.arange(half, dtype=torch.float32, device=rows.device) / half)
    positions = torch.arange(first, first + rows.shape[1], dtype=torch.float32, device=rows.device)
    angles = positions[:, None] * frequencies
    return angles.cos().to(rows.dtype), angles.sin().to(rows.dtype)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = heads.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
