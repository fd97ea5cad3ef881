"""What one forward pass is given and what it must read: batches, bytes and FLOP."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.gpu.random_model import weight_sizes
from kernels.permute import Answers
from model.batch import Batch
from model.config import ModelConfig
from model.tensors import TensorKind, expected_tensors
from router.dispatch import Dispatcher, DispatchHandle, ExpertChoice

BLOCK_SIZE = 16


def blocks_of(context: int) -> int:
    """Blocks that hold a context."""
    return -(-context // BLOCK_SIZE)


def make_batch(num_sequences: int, context: int, rows: int, vocab_size: int, num_logit_rows: int) -> Batch:
    """The last `rows` of `context` positions of each sequence, random tokens; logits of each one's last rows."""
    width = blocks_of(context)
    positions = torch.arange(context - rows, context, dtype=torch.int32).repeat(num_sequences)
    first = torch.arange(num_sequences, dtype=torch.int32).repeat_interleave(rows) * (width * BLOCK_SIZE)
    ends = (torch.arange(num_sequences) + 1) * rows
    return Batch(
        token_ids=torch.randint(vocab_size, (num_sequences * rows,)),
        positions=positions,
        slots=first + positions,
        row_starts=torch.arange(num_sequences + 1, dtype=torch.int32) * rows,
        context_lens=torch.full((num_sequences,), context, dtype=torch.int32),
        block_tables=torch.arange(num_sequences * width, dtype=torch.int32).view(num_sequences, width),
        logit_rows=(ends[:, None] - num_logit_rows + torch.arange(num_logit_rows)).flatten(),
    )


class WatchedDispatcher:
    """A dispatcher that can tell how many experts a step reads."""

    def __init__(self, inner: Dispatcher) -> None:
        self._counts: list[torch.Tensor] | None = None
        self._inner = inner
        self.local_load = inner.local_load

    @contextmanager
    def watching(self) -> Iterator[list[torch.Tensor]]:
        """The rows of each expert of each layer that runs meanwhile."""
        self._counts = []
        try:
            yield self._counts
        finally:
            self._counts = None

    def dispatch(self, hidden: torch.Tensor, choice: ExpertChoice) -> tuple[DispatchHandle, torch.Tensor]:
        """As the inner one."""
        handle, rows = self._inner.dispatch(hidden, choice)
        if self._counts is not None:
            self._counts.append(handle.counts.clone())
        return handle, rows

    def combine(self, rows: torch.Tensor, handle: DispatchHandle, plus: torch.Tensor | None = None) -> Answers:
        """As the inner one."""
        return self._inner.combine(rows, handle, plus)


def step_bytes(config: ModelConfig, batch: Batch, num_experts_read: int) -> int:
    """Bytes that a step must read at least, each once: weights of the experts chosen, all others, keys and values."""
    sizes = weight_sizes(config, torch.bfloat16)
    expert_bytes = sizes["experts"] / (config.num_moe_layers * config.num_experts)
    kv_row = 2 * config.num_key_value_heads * config.head_dim * 2 * config.num_hidden_layers
    embedded = len(batch.token_ids) * config.hidden_size * 2
    return int(sizes["shared"] + num_experts_read * expert_bytes + kv_row * int(batch.context_lens.sum()) + embedded)


def step_flop(config: ModelConfig, num_tokens: int, context: int) -> int:
    """Products and sums of a prompt of `num_tokens` up to `context`, the head's left out."""
    weights = 0.0
    for spec in expected_tensors(config):
        if spec.kind in (TensorKind.LINEAR, TensorKind.ROUTER) and spec.name != "lm_head.weight":
            share = 1.0 if spec.expert is None else config.num_experts_per_tok / config.num_experts
            weights += math.prod(spec.shape) * share
    seen = num_tokens * context - num_tokens * (num_tokens - 1) // 2
    attended = 4 * seen * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return int(2 * weights * num_tokens + attended)
