"""From a plan to tensors, once per step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from model.batch import Batch
from scheduler.plan import SequencePlan, StepPlan

IntArray = npt.NDArray[np.int32]


def build_batch(plan: StepPlan, block_size: int, device: torch.device) -> Batch:
    """Lay the plan's sequences out one after the other. A plan without sequences gives T = B = 0.

    Each array is filled on the CPU and becomes a tensor once; a CUDA device costs one copy per tensor.
    """
    sequences = plan.sequences
    num_sequences = len(sequences)
    starts = np.fromiter((s.start for s in sequences), dtype=np.int32, count=num_sequences)
    lengths = np.fromiter((len(s.token_ids) for s in sequences), dtype=np.int32, count=num_sequences)
    row_starts = np.zeros(num_sequences + 1, dtype=np.int32)
    np.cumsum(lengths, out=row_starts[1:])
    assert row_starts[-1] == plan.num_rows, f"the plan says {plan.num_rows} rows, its sequences {row_starts[-1]}"
    owner = np.repeat(np.arange(num_sequences, dtype=np.int32), lengths)
    # Row i of sequence b stands at start[b] + (i - row_starts[b]).
    offsets: IntArray = starts - row_starts[:-1]
    positions: IntArray = np.arange(plan.num_rows, dtype=np.int32)
    positions += offsets[owner]
    context_lens = starts + lengths
    tables = _block_tables(sequences, -(-context_lens // block_size))
    slots: IntArray = tables[owner, positions // block_size] * np.int32(block_size) + positions % np.int32(block_size)
    token_ids = np.fromiter((t for s in sequences for t in s.token_ids), dtype=np.int64, count=plan.num_rows)
    return Batch(
        token_ids=_tensor(token_ids, device),
        positions=_tensor(positions, device),
        slots=_tensor(slots, device),
        row_starts=_tensor(row_starts, device),
        context_lens=_tensor(context_lens, device),
        block_tables=_tensor(tables, device),
        logit_rows=_tensor(np.array(_logit_rows(sequences, row_starts.tolist()), dtype=np.int64), device),
    )


def _block_tables(sequences: tuple[SequencePlan, ...], num_used: IntArray) -> IntArray:
    """The blocks in use, [B, max blocks] padded with 0."""
    used: list[int] = num_used.tolist()
    tables = np.zeros((len(used), max(used, default=0)), dtype=np.int32)
    for row, (sequence, count) in enumerate(zip(sequences, used, strict=True)):
        assert len(sequence.block_table) >= count, f"{len(sequence.block_table)} blocks where {count} are needed"
        tables[row, :count] = sequence.block_table[:count]
    return tables


def _logit_rows(sequences: tuple[SequencePlan, ...], row_starts: list[int]) -> list[int]:
    """The rows to be scored (from the front of a chunk) and those to be sampled (from its end), ascending."""
    rows: list[int] = []
    for sequence, start, end in zip(sequences, row_starts, row_starts[1:], strict=False):
        first_sampled = end - sequence.num_logit_rows
        scored = len(sequence.prompt_logprob_targets)
        assert start + scored <= first_sampled, f"{scored} scored rows reach into the sampled ones"
        rows.extend(range(start, start + scored))
        rows.extend(range(first_sampled, end))
    return rows


def _tensor(array: IntArray | npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """The array itself on the CPU (shared memory), a copy elsewhere."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)
