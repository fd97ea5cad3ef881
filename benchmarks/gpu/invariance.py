"""The batch-invariant kernels on the device: whether a row keeps its bits whatever runs beside it, and at what cost."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch

from benchmarks.gpu.full_model import FullModel
from benchmarks.gpu.session import Figures, Session
from benchmarks.gpu.steps import make_batch
from kernels import native
from model.batch import Batch

_CHUNK_ROWS = 12  # more than a verification has


def measure_invariance(session: Session, model: FullModel) -> Figures:
    """Rows alone and among others, then the phases decode and prefill again; those above are what they compare with."""
    native.use("triton", batch_invariant=True)
    try:
        found = session.each({"a row among others": partial(_among, model), "a row of a chunk": partial(_chunk, model)})
        for name, phase in {"decode": model.decode, "prefill": model.prefill}.items():
            figures = phase()
            found["ok"] = found["ok"] and figures.pop("ok")
            found |= {f"{name}, {part}": figure for part, figure in figures.items()}
        return found
    finally:
        native.use("triton")


def _among(model: FullModel) -> Figures:
    """The first sequence of the largest batch, then by itself."""
    plan, loaded = model.plan, model.loaded
    batch = make_batch(plan.batches[-1], plan.context + 1, 1, loaded.config.vocab_size, 1)
    together = loaded.model.forward(batch, loaded.kv).logits
    return _compared(together[:1], loaded.model.forward(_rows(batch, 0, 1), loaded.kv).logits)


def _chunk(model: FullModel) -> Figures:
    """The last row of a chunk, then as a decode."""
    plan, loaded = model.plan, model.loaded
    rows = min(_CHUNK_ROWS, plan.context)
    batch = make_batch(1, plan.context, rows, loaded.config.vocab_size, 1)
    in_chunk = loaded.model.forward(batch, loaded.kv).logits
    return _compared(in_chunk, loaded.model.forward(_rows(batch, rows - 1, rows), loaded.kv).logits)


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    """Rows of the first sequence alone, of which the last one's logits are wanted."""
    return dataclasses.replace(
        batch,
        token_ids=batch.token_ids[start:stop],
        positions=batch.positions[start:stop],
        slots=batch.slots[start:stop],
        row_starts=torch.tensor([0, stop - start], dtype=torch.int32),
        context_lens=batch.context_lens[:1],
        block_tables=batch.block_tables[:1],
        logit_rows=torch.tensor([stop - start - 1]),
    )


def _compared(ours: torch.Tensor, theirs: torch.Tensor) -> Figures:
    """Not ok unless all bits are the same."""
    is_equal = torch.equal(ours, theirs)
    return {"ok": is_equal, "same_bits": str(is_equal), "largest_difference": float((ours - theirs).abs().max())}
