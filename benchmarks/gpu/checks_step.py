"""What a recorded step does beside its forward pass, exactly as torch does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from benchmarks.gpu.check import Check, Sizes
from benchmarks.kernels.step import BLOCK_SIZE, random_before, random_outcome, random_rows
from kernels.step import accept_drafts, reference, rows_behind

_SCRATCH = 1 << 20


def step(sizes: Sizes) -> Iterator[Check]:
    """With drafts, padding, and rows that have no finite logits."""
    for num_sequences, rows_each, num_padding in ((1, 1, 0), (sizes.rows // 2, 4, sizes.rows % 64)):
        before = random_before(num_sequences, rows_each - 1)
        planned = random_rows(num_sequences, rows_each, num_padding)
        ours = rows_behind(before, planned, BLOCK_SIZE, _SCRATCH)
        theirs = reference.rows_behind(before, planned, BLOCK_SIZE, _SCRATCH)
        shape = f"of {num_sequences} x {rows_each} rows"
        for field in dataclasses.fields(ours):
            yield Check.equal(f"{field.name} {shape}", getattr(ours, field.name), getattr(theirs, field.name))
        yield from _accepted(num_sequences, rows_each, shape)


def _accepted(num_sequences: int, rows_each: int, shape: str) -> Iterator[Check]:
    """Of tokens of which about half are right."""
    num_rows = num_sequences * rows_each
    held, chosen = torch.randint(2, (num_rows,)), torch.randint(2, (num_rows,))
    best = torch.randn(num_rows).masked_fill_(torch.rand(num_rows) < 0.1, float("nan"))
    starts = torch.arange(0, num_rows + 1, rows_each, dtype=torch.int32)
    found = []
    for accept in (accept_drafts, reference.accept_drafts):
        before, outcome = random_before(num_sequences, rows_each - 1), random_outcome(num_sequences, num_rows)
        before.coming.zero_()
        behind = accept(held, chosen, best, starts, before, outcome)
        kept = {"rows behind drafts": behind, "accepted": before.accepted, "coming": before.coming}
        found.append(kept | {"told tokens": outcome.token_ids, "told accepted": outcome.accepted})
    for what, ours in found[0].items():
        yield Check.equal(f"{what} {shape}", ours, found[1][what])
