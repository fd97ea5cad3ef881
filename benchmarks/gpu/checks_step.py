"""What a recorded step does beside its forward passes, exactly as torch does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from benchmarks.gpu.check import Check, Sizes
from benchmarks.kernels.step import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    random_before,
    random_drafted,
    random_outcome,
    random_rows,
)
from kernels.step import accept_drafts, draft_rows, first_drafts, further_drafts, reference, rows_behind
from kernels.step.values import StepBefore

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
    for num_sequences, vocab_size in ((1, sizes.vocab), (sizes.rows // 2, sizes.vocab // 5)):
        yield from _passes(num_sequences, vocab_size)


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


def _passes(num_sequences: int, vocab_size: int) -> Iterator[Check]:
    """A chain of three drafts, and the rows of a pass."""
    shape = f"of {num_sequences} x {vocab_size} logits"
    logits = torch.randn(3, num_sequences, vocab_size).round(decimals=1)  # some are equal
    table, positions = torch.randperm(vocab_size), torch.randint(5_000, (2 * num_sequences,)).int()
    last = torch.arange(num_sequences) * 2
    found = []
    for first, further in ((first_drafts, further_drafts), (reference.first_drafts, reference.further_drafts)):
        before, drafts = StepBefore.of(num_sequences, 3, last.device), torch.zeros(3, num_sequences, dtype=torch.int64)
        drafted = first(logits[0], table, positions, last, before, drafts)
        for number in (1, 2):
            further(logits[number], table, drafted, before, drafts)
        kept = {field.name: getattr(drafted, field.name) for field in dataclasses.fields(drafted)}
        found.append(kept | {"drafts": drafts, "coming drafts": before.coming, "arrivals": before.arrivals})
    for what, ours in found[0].items():
        yield Check.equal(f"{what} {shape}", ours, found[1][what])
    given = (
        random_drafted(num_sequences),
        torch.randint(4, (num_sequences,)).int(),
        torch.randperm(num_sequences * NUM_BLOCKS).int().view(num_sequences, NUM_BLOCKS),
    )
    rows, truth = (rows_of(*given, BLOCK_SIZE, _SCRATCH) for rows_of in (draft_rows, reference.draft_rows))
    for field in dataclasses.fields(rows):
        yield Check.equal(
            f"{field.name} of a pass of {num_sequences}", getattr(rows, field.name), getattr(truth, field.name)
        )
