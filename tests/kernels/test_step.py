"""Rows behind a step, acceptance of drafts, and further drafts: against loops over rows, whatever lies beside."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

from kernels.step import accept_drafts, draft_rows, first_drafts, further_drafts, rows_behind
from kernels.step.values import Drafted, DraftRows, Outcome, PlannedRows, StepBefore, StepRows

PLACES, MAX_DRAFTS, SCRATCH = 150, 3, 9_999
NO_SOURCE = -1


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def before_of(draw: random.Random, num_places: int = PLACES, max_drafts: int = MAX_DRAFTS) -> StepBefore:
    before = StepBefore.of(num_places, max_drafts, torch.get_default_device())
    before.accepted[:-1] = int32([draw.randint(0, max_drafts) for _ in range(num_places)])
    before.coming.copy_(torch.arange(before.coming.numel()).view_as(before.coming) + 5_000)
    return before


def planned_of(draw: random.Random, lengths: list[int], num_padding: int, block_size: int) -> PlannedRows:
    """As the host lays sequences of these lengths out, some behind a step and some behind none; padding behind."""
    width = 8
    owner = [number for number, length in enumerate(lengths) for _ in range(length)]
    numbers = [number for length in lengths for number in range(length)]
    places = [draw.choice([PLACES, draw.randrange(PLACES)]) for _ in lengths]
    starts = [draw.randrange((width - 2) * block_size) if block_size > 1 else 0 for _ in lengths]
    zeros = [0] * num_padding
    sources = [
        NO_SOURCE if places[b] == PLACES else (n - 1 if n else MAX_DRAFTS) * PLACES + places[b]
        for b, n in zip(owner, numbers, strict=True)
    ]
    return PlannedRows(
        token_ids=torch.tensor([draw.randrange(3_000) for _ in owner] + zeros),
        positions=int32([starts[b] + n for b, n in zip(owner, numbers, strict=True)] + zeros),
        token_sources=int32(sources + [NO_SOURCE] * num_padding),
        row_places=int32([places[b] for b in owner] + [PLACES] * num_padding),
        table_rows=int32([b * width for b in owner] + zeros),
        point_rows=int32([row + b * MAX_DRAFTS for row, b in enumerate(owner)] + zeros),
        is_followed=torch.tensor([draw.random() < 0.5 for _ in owner] + [False] * num_padding),
        points=torch.rand(len(owner) + num_padding + len(lengths) * MAX_DRAFTS, dtype=torch.float64),
        context_lens=int32([start + length for start, length in zip(starts, lengths, strict=True)]),
        places=int32(places),
        block_tables=int32(draw.sample(range(1_000, 5_000), len(lengths) * width)).view(-1, width),
        num_live=int32([len(owner)]),
    )


def expected_rows(before: StepBefore, planned: PlannedRows, block_size: int) -> dict[str, list[float]]:
    """Row by row, as the page of the values says."""
    given = {field.name: getattr(planned, field.name).tolist() for field in dataclasses.fields(planned)}
    accepted, coming = before.accepted.tolist(), before.coming.flatten().tolist()
    blocks = [block for table in given["block_tables"] for block in table]
    found: dict[str, list[float]] = {field.name: [] for field in dataclasses.fields(StepRows)}
    for row, (position, place) in enumerate(zip(given["positions"], given["row_places"], strict=True)):
        position, is_live = position + accepted[place], row < given["num_live"][0]
        slot = blocks[given["table_rows"][row] + position // block_size] * block_size + position % block_size
        source = given["token_sources"][row]
        found["token_ids"].append(given["token_ids"][row] if source == NO_SOURCE else coming[source])
        found["positions"].append(position)
        found["slots"].append(slot if is_live else SCRATCH)
        found["draft_slots"].append(slot if is_live and given["is_followed"][row] else SCRATCH)
        found["is_live"].append(is_live)
        found["points"].append(given["points"][given["point_rows"][row] + accepted[place]])
    pairs = zip(given["context_lens"], given["places"], strict=True)
    found["context_lens"] = [length + accepted[place] for length, place in pairs]
    return found


DTYPES = {"token_ids": torch.int64, "is_live": torch.bool, "points": torch.float64}


@pytest.mark.parametrize("block_size", [1, 4, 64, 6])
@pytest.mark.parametrize(
    ("lengths", "num_padding"),
    [([1], 0), ([4], 3), ([1] * 128, 0), ([4] * 128, 0), ([3, 1, 4, 2] * 33, 29), ([1, 2], 61), ([5] * 31, 0)],
)
def test_rows_move_on_with_their_sequence(
    gpu_backend: str, lengths: list[int], num_padding: int, block_size: int
) -> None:
    draw = random.Random(len(lengths) * 97 + num_padding)
    before, planned = before_of(draw), planned_of(draw, lengths, num_padding, block_size)
    rows = rows_behind(before, planned, block_size, SCRATCH)
    for name, expected in expected_rows(before, planned, block_size).items():
        found: torch.Tensor = getattr(rows, name)
        assert found.dtype == DTYPES.get(name, torch.int32) and found.tolist() == expected, name


def test_a_step_of_padding_alone_writes_to_the_scratch_slot(gpu_backend: str) -> None:
    draw = random.Random(1)
    planned = dataclasses.replace(planned_of(draw, [], 7, 4), places=int32([PLACES] * 3), context_lens=int32([0] * 3))
    tables = torch.zeros(3, 8, dtype=torch.int32)
    rows = rows_behind(before_of(draw), dataclasses.replace(planned, block_tables=tables), 4, SCRATCH)
    assert rows.slots.tolist() == rows.draft_slots.tolist() == [SCRATCH] * 7 and not rows.is_live.any()
    assert rows.context_lens.tolist() == [0] * 3 and rows.token_ids.tolist() == [0] * 7


def accepted_by_hand(
    row_tokens: list[int], token_ids: list[int], best: list[float], starts: list[int]
) -> tuple[list[int], list[int]]:
    counts, behind = [], []
    for first, end in itertools.pairwise(starts):
        count = 0
        while (
            first + count + 1 < end
            and token_ids[first + count] == row_tokens[first + count + 1]
            and abs(best[first + count + 1]) < float("inf")
        ):
            count += 1
        counts.append(count)
        behind.append(min(first + count, len(token_ids) - 1))
    return counts, behind


def demand_accepted(row_tokens: list[int], token_ids: list[int], best: list[float], starts: list[int]) -> list[int]:
    """Everything that is kept of a step, against the count by hand; returns it."""
    draw = random.Random(3)
    before = before_of(draw)
    old_accepted, old_coming = before.accepted.tolist(), before.coming.tolist()
    num_rows, num_sequences = len(token_ids), len(starts) - 1
    outcome = Outcome(
        token_ids=torch.full((num_rows,), -7),
        best=torch.full((num_rows,), -7.0),
        accepted=int32([-7] * num_sequences),
    )
    chosen, bests = torch.tensor(token_ids), torch.tensor(best, dtype=torch.float32)
    behind = accept_drafts(torch.tensor(row_tokens), chosen, bests, int32(starts), before, outcome)
    counts, rows = accepted_by_hand(row_tokens, token_ids, bests.tolist(), starts)
    assert behind.dtype == torch.int64 and behind.tolist() == rows
    assert outcome.accepted.tolist() == counts and outcome.token_ids.tolist() == token_ids
    assert torch.equal(outcome.best.view(torch.int32), bests.view(torch.int32))
    assert before.accepted.tolist() == counts + old_accepted[num_sequences:], "the others' places, and that of nobody"
    assert before.coming[:-1].tolist() == old_coming[:-1]
    assert before.coming[-1].tolist() == [token_ids[row] for row in rows] + old_coming[-1][num_sequences:]
    return counts


def test_drafts_are_accepted_up_to_the_first_other_token(gpu_backend: str) -> None:
    tokens = list(range(100, 180))
    held = [0, *tokens[:-1]]  # each row holds what was chosen for the one before it
    for row in (5, 13, 71):
        held[row] += 1
    # Rows 0..5, another token in 5; 6..9; none; 10 alone; 11, 12; 13..79, another token in 71.
    assert demand_accepted(held, tokens, [1.0] * 80, [0, 6, 10, 10, 11, 13, 80]) == [4, 3, 0, 0, 1, 57]


@pytest.mark.parametrize("sick", [float("nan"), float("inf"), float("-inf")])
def test_a_round_ends_before_a_row_without_finite_logits(gpu_backend: str, sick: float) -> None:
    """Also where its token is right; of the first row of a sequence only the host takes notice."""
    best = [1.0] * 9
    best[0] = best[3] = best[8] = sick
    assert demand_accepted([4] * 9, [4] * 9, best, [0, 2, 5, 9]) == [1, 0, 2]


@pytest.mark.parametrize(
    ("num_sequences", "rows_each", "num_padding", "num_empty"),
    [(1, 1, 0, 0), (1, 4, 0, 0), (128, 4, 0, 0), (37, 3, 50, 5), (4, 3, 0, 2), (2, 70, 9, 1)],
)
def test_all_that_is_kept_of_a_step(
    gpu_backend: str, num_sequences: int, rows_each: int, num_padding: int, num_empty: int
) -> None:
    """Sequences without rows begin where what lives ends, be there padding or not."""
    draw = random.Random(num_sequences)
    num_rows = num_sequences * rows_each
    tokens = [draw.randrange(2) for _ in range(num_rows + num_padding)]
    held = [0, *tokens[:-1]]
    for row in draw.sample(range(num_rows), num_rows // 5):
        held[row] = 2
    best = [draw.choice([0.0, -3.5, 7.25]) for _ in tokens]
    starts = [row * rows_each for row in range(num_sequences + 1)] + [num_rows] * num_empty
    demand_accepted(held, tokens, best, starts)


def test_values_say_where_nobody_is() -> None:
    before = StepBefore.of(5, 2, torch.device("cpu"))
    assert (before.num_places, before.max_drafts) == (5, 2) and before.accepted[before.num_places] == 0


def likeliest(logits: torch.Tensor, table: torch.Tensor | None) -> list[int]:
    best = [row.index(max(row)) for row in logits.tolist()]
    return best if table is None else [int(table[at]) for at in best]


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize(("num_sequences", "vocab"), [(1, 1), (1, 33), (3, 4096), (2, 4097), (37, 9001), (150, 40)])
def test_drafts_are_the_likeliest_tokens_one_behind_the_other(
    gpu_backend: str, num_sequences: int, vocab: int, has_table: bool
) -> None:
    """They move the chain on, lie where host and next step look for them, and touch nothing else."""
    draw = random.Random(vocab)
    before = before_of(draw)
    accepted, coming = before.accepted.tolist(), before.coming.tolist()
    table = torch.tensor(draw.sample(range(20_000), vocab)) if has_table else None
    drafts = torch.full((MAX_DRAFTS, num_sequences), -7)
    positions = int32([draw.randrange(90_000) for _ in range(num_sequences + 70)])
    last = torch.tensor([draw.randrange(num_sequences + 70) for _ in range(num_sequences)])
    drafted: Drafted | None = None
    told = drafts.tolist()
    for number in range(MAX_DRAFTS):
        logits = torch.randn(num_sequences, vocab).round(decimals=1)  # some are equal
        logits[0] = float("-inf")
        if drafted is None:
            drafted = first_drafts(logits, table, positions, last, before, drafts)
        else:
            further_drafts(logits, table, drafted, before, drafts)
        told[number] = likeliest(logits, table)
        coming[number][:num_sequences] = told[number]
        assert drafted.token_ids.dtype == torch.int64 and drafted.token_ids.tolist() == told[number]
        assert drafted.positions.dtype == drafted.num_drafts.dtype == torch.int32
        assert drafted.positions.tolist() == [int(positions[row]) + number + 1 for row in last]
        assert drafted.num_drafts.tolist() == [number + 1] * num_sequences
        assert drafts.tolist() == told and before.coming.tolist() == coming
        assert not before.arrivals.any() and before.accepted.tolist() == accepted


def test_zeros_of_both_signs_are_equal_and_a_draft_of_nan_is_a_token(gpu_backend: str) -> None:
    logits = torch.full((4, 4100), -1.0)
    logits[0, [7, 9]] = torch.tensor([-0.0, 0.0])
    logits[1, [4099, 4098, 5]] = torch.tensor([float("inf"), 2.0, 3.0])
    logits[2] = float("nan")
    logits[3, 4096:] = float("nan")
    rows = torch.zeros(4, dtype=torch.int64)
    before, drafts = before_of(random.Random(2)), torch.zeros(3, 4, dtype=torch.int64)
    tokens = first_drafts(logits, None, int32([5]), rows, before, drafts).token_ids.tolist()
    assert tokens[:2] == [7, 4099] and all(0 <= token < 4100 for token in tokens)


@pytest.mark.parametrize("block_size", [1, 4, 64, 6])
@pytest.mark.parametrize("num_sequences", [1, 31, 32, 128])
def test_a_pass_runs_one_row_of_each_sequence_that_wants_a_draft(
    gpu_backend: str, num_sequences: int, block_size: int
) -> None:
    draw = random.Random(num_sequences)
    reached = [draw.randrange(8 * block_size) for _ in range(num_sequences)]
    wanted = [draw.randrange(4) for _ in range(num_sequences)]
    tables = int32(draw.sample(range(9_000), num_sequences * 8)).view(num_sequences, 8)
    drafted = Drafted(
        token_ids=torch.zeros(num_sequences, dtype=torch.int64),
        positions=int32(reached),
        num_drafts=int32([2] * num_sequences),
    )
    rows = draft_rows(drafted, int32(wanted), tables, block_size, SCRATCH)
    is_live = [number > 2 for number in wanted]
    positions = [position if lives else 0 for position, lives in zip(reached, is_live, strict=True)]
    slots = [
        int(tables[b, at // block_size]) * block_size + at % block_size if is_live[b] else SCRATCH
        for b, at in enumerate(positions)
    ]
    expected = {
        "positions": positions,
        "slots": slots,
        "is_live": is_live,
        "context_lens": [position + 1 for position in positions],
        "row_starts": list(range(num_sequences + 1)),
    }
    assert expected.keys() == {field.name for field in dataclasses.fields(DraftRows)}
    for name, values in expected.items():
        found: torch.Tensor = getattr(rows, name)
        assert found.dtype == DTYPES.get(name, torch.int32) and found.tolist() == values, name
    assert drafted.positions.tolist() == reached
