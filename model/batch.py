"""One ragged set of rows, whatever they are: prefill chunks, decodes, verifies."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The tensors of one step on one rank; T rows of B sequences. T = 0 and B = 0 are valid.

    Rows of sequence b are [row_starts[b], row_starts[b + 1]); its KV after this step is [0, context_lens[b]).
    All index tensors are int32 and contiguous unless said, on the model's device.
    """

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T]
    slots: torch.Tensor  # [T] block id * block_size + offset, where the row's K and V are written
    row_starts: torch.Tensor  # [B + 1]
    context_lens: torch.Tensor  # [B]
    block_tables: torch.Tensor  # [B, max blocks], padded with 0
    logit_rows: torch.Tensor  # [S] int64, rows whose logits are wanted, ascending
    # Of a batch with fixed shapes, the same on all ranks of a group, in which sequences may have no rows:
    is_live: torch.Tensor | None = None  # [T] bool: the row is no padding; experts compute nothing for the others
    max_rows: int | None = None  # no sequence has more


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutput:
    """What one forward pass yields. Captured states stay away unless asked for."""

    logits: torch.Tensor  # [S, V] fp32
    hidden: torch.Tensor  # [T, H] states after the final norm
    captured: torch.Tensor | None = None  # [T, C * H] residual-stream states, low to high
