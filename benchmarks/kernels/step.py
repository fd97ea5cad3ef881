"""What a recorded step does beside its forward passes: rows moved on, drafts accepted, further ones proposed.

python -m benchmarks.kernels.step [--json | --floor H20]
"""

from __future__ import annotations

import torch

from benchmarks.kernels.timing import Case, report
from kernels.step import accept_drafts, draft_rows, first_drafts, reference, rows_behind
from kernels.step.values import Drafted, Outcome, PlannedRows, StepBefore

BLOCK_SIZE, NUM_BLOCKS = 64, 128  # of each sequence: 8,192 positions
SCRATCH = 0


def random_before(num_places: int, max_drafts: int) -> StepBefore:
    """What a step may have left of so many sequences."""
    before = StepBefore.of(num_places, max_drafts, torch.get_default_device())
    before.accepted[:-1] = torch.randint(max_drafts + 1, (num_places,))
    before.coming.copy_(torch.randint(150_000, before.coming.shape))
    return before


def random_rows(num_sequences: int, rows_each: int, num_padding: int = 0) -> PlannedRows:
    """Rows of as many sequences, all behind a step whose number of places is theirs, and padding."""
    max_drafts, num_rows = rows_each - 1, num_sequences * rows_each
    owner = torch.arange(num_sequences).repeat_interleave(rows_each)
    number = torch.arange(num_rows) % rows_each
    places = torch.randperm(num_sequences)
    starts = torch.randint((NUM_BLOCKS - 1) * BLOCK_SIZE, (num_sequences,))
    line = torch.where(number == 0, max_drafts, number - 1)

    def padded(values: torch.Tensor, value: int = 0) -> torch.Tensor:
        return torch.nn.functional.pad(values.int(), (0, num_padding), value=value)

    return PlannedRows(
        token_ids=padded(torch.randint(150_000, (num_rows,))).long(),
        positions=padded(starts[owner] + number),
        token_sources=padded(line * num_sequences + places[owner], -1),
        row_places=padded(places[owner], num_sequences),
        table_rows=padded(owner * NUM_BLOCKS),
        point_rows=padded(torch.arange(num_rows) + owner * max_drafts),
        is_followed=padded(torch.rand(num_rows) < 0.5) > 0,
        points=torch.rand(num_rows + num_padding + num_sequences * max_drafts, dtype=torch.float64),
        context_lens=(starts + rows_each).int(),
        places=places.int(),
        block_tables=torch.randperm(num_sequences * NUM_BLOCKS).int().view(num_sequences, NUM_BLOCKS),
        num_live=torch.tensor([num_rows], dtype=torch.int32),
    )


def random_outcome(num_sequences: int, num_rows: int) -> Outcome:
    """Room for what the host is told."""
    return Outcome(
        token_ids=torch.zeros(num_rows, dtype=torch.int64),
        best=torch.zeros(num_rows),
        accepted=torch.zeros(num_sequences, dtype=torch.int32),
    )


def step(num_sequences: int, rows_each: int) -> list[Case]:
    """Both kernels of one step."""
    before, planned = random_before(num_sequences, rows_each - 1), random_rows(num_sequences, rows_each)
    num_rows = num_sequences * rows_each
    held, chosen, best = torch.randint(2, (num_rows,)), torch.randint(2, (num_rows,)), torch.randn(num_rows)
    starts = torch.arange(0, num_rows + 1, rows_each, dtype=torch.int32)
    after, outcome = random_before(num_sequences, rows_each - 1), random_outcome(num_sequences, num_rows)
    name = f"{num_sequences} x {rows_each}"
    return [
        Case(
            name=f"rows behind a step {name}",
            run=lambda: rows_behind(before, planned, BLOCK_SIZE, SCRATCH),
            num_bytes=82 * num_rows + 16 * num_sequences,
            rival=lambda: reference.rows_behind(before, planned, BLOCK_SIZE, SCRATCH),
        ),
        Case(
            name=f"accept drafts {name}",
            run=lambda: accept_drafts(held, chosen, best, starts, after, outcome),
            num_bytes=32 * (num_rows + num_sequences),
            rival=lambda: reference.accept_drafts(held, chosen, best, starts, after, outcome),
        ),
    ]


def random_drafted(num_sequences: int) -> Drafted:
    """One draft of each sequence."""
    return Drafted(
        token_ids=torch.zeros(num_sequences, dtype=torch.int64),
        positions=torch.randint(NUM_BLOCKS * BLOCK_SIZE, (num_sequences,)).int(),
        num_drafts=torch.ones(num_sequences, dtype=torch.int32),
    )


def drafting(num_sequences: int, vocab_size: int) -> list[Case]:
    """What stands before and behind a pass of a draft model."""
    drafted, before = random_drafted(num_sequences), random_before(num_sequences, 3)
    wanted = torch.randint(4, (num_sequences,)).int()
    tables = torch.randperm(num_sequences * NUM_BLOCKS).int().view(num_sequences, NUM_BLOCKS)
    logits, drafts = torch.randn(num_sequences, vocab_size), torch.zeros(3, num_sequences, dtype=torch.int64)
    given = (logits, torch.randperm(vocab_size), drafted.positions, torch.arange(num_sequences), before, drafts)
    return [
        Case(
            name=f"draft rows {num_sequences}",
            run=lambda: draft_rows(drafted, wanted, tables, BLOCK_SIZE, SCRATCH),
            num_bytes=33 * num_sequences,
            rival=lambda: reference.draft_rows(drafted, wanted, tables, BLOCK_SIZE, SCRATCH),
        ),
        Case(
            name=f"draft {num_sequences} x {vocab_size}",
            run=lambda: first_drafts(*given),
            num_bytes=logits.nbytes + 52 * num_sequences,
            num_flop=3 * logits.numel(),
            rival=lambda: reference.first_drafts(*given),
        ),
    ]


def cases() -> list[Case]:
    """One sequence and many, without drafts and with three each, of an EAGLE3 head and of all of AntAngelMed's."""
    steps = [case for shape in ((1, 1), (1, 4), (128, 1), (128, 4)) for case in step(*shape)]
    return steps + [case for size in (32_000, 157_184) for count in (1, 128) for case in drafting(count, size)]


if __name__ == "__main__":
    report(cases)
