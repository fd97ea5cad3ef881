"""Plan to tensors: positions, slots, tables and logit rows of ragged batches against a loop over rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.batch import build_batch
from scheduler.plan import SequencePlan, StepPlan
from scheduler.request import SamplingParams

CPU = torch.device("cpu")
PARAMS = SamplingParams(max_tokens=4)


def _sequence(start: int, token_ids: tuple[int, ...], blocks: list[int], *, sampled: int, scored: int) -> SequencePlan:
    return SequencePlan(
        sequence_id=0,
        token_ids=token_ids,
        start=start,
        block_table=blocks,
        num_logit_rows=sampled,
        sampling=PARAMS,
        sequence_index=0,
        output_index=0,
        prompt_logprob_targets=tuple(range(scored)),
    )


def _plan(*sequences: SequencePlan) -> StepPlan:
    return StepPlan(step_id=1, sequences=sequences, num_rows=sum(len(s.token_ids) for s in sequences))


@st.composite
def _plans(draw: st.DrawFn) -> tuple[StepPlan, int]:
    block_size = draw(st.sampled_from([1, 3, 16]))
    sequences = []
    for _ in range(draw(st.integers(0, 5))):
        start, length = draw(st.integers(0, 40)), draw(st.integers(1, 20))
        num_blocks = -(-(start + length) // block_size) + draw(st.integers(0, 2))
        blocks = draw(st.lists(st.integers(0, 999), min_size=num_blocks, max_size=num_blocks))
        sampled = draw(st.integers(0, 1))
        scored = draw(st.integers(0, length - sampled))
        token_ids = tuple(draw(st.lists(st.integers(0, 99), min_size=length, max_size=length)))
        sequences.append(_sequence(start, token_ids, blocks, sampled=sampled, scored=scored))
    return _plan(*sequences), block_size


@given(_plans())
def test_every_row_lies_where_its_sequence_says(case: tuple[StepPlan, int]) -> None:
    plan, block_size = case
    batch = build_batch(plan, block_size, CPU)
    token_ids, positions, slots, logit_rows, row_starts = [], [], [], [], [0]
    for sequence in plan.sequences:
        for offset, token_id in enumerate(sequence.token_ids):
            position = sequence.start + offset
            token_ids.append(token_id)
            positions.append(position)
            slots.append(sequence.block_table[position // block_size] * block_size + position % block_size)
            is_scored = offset < len(sequence.prompt_logprob_targets)
            if is_scored or offset >= len(sequence.token_ids) - sequence.num_logit_rows:
                logit_rows.append(len(token_ids) - 1)
        row_starts.append(len(token_ids))
    assert batch.token_ids.tolist() == token_ids
    assert batch.positions.tolist() == positions
    assert batch.slots.tolist() == slots
    assert batch.row_starts.tolist() == row_starts
    assert batch.logit_rows.tolist() == logit_rows
    assert batch.context_lens.tolist() == [s.start + len(s.token_ids) for s in plan.sequences]
    for sequence, table in zip(plan.sequences, batch.block_tables.tolist(), strict=True):
        used = -(-(sequence.start + len(sequence.token_ids)) // block_size)
        assert table == [*sequence.block_table[:used], *[0] * (len(table) - used)]


def test_dtypes_are_those_that_the_kernels_read() -> None:
    batch = build_batch(_plan(_sequence(0, (5, 6), [3], sampled=1, scored=0)), 16, CPU)
    assert batch.token_ids.dtype == batch.logit_rows.dtype == torch.int64
    for tensor in (batch.positions, batch.slots, batch.row_starts, batch.context_lens, batch.block_tables):
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()


def test_a_plan_without_sequences_is_an_empty_batch() -> None:
    batch = build_batch(_plan(), 16, CPU)
    assert batch.token_ids.shape == (0,) and batch.row_starts.tolist() == [0]
    assert batch.block_tables.shape == (0, 0) and batch.logit_rows.shape == (0,)


def test_a_table_that_is_too_short_is_refused() -> None:
    with pytest.raises(AssertionError, match="1 blocks where 2 are needed"):
        build_batch(_plan(_sequence(15, (5, 6), [3], sampled=1, scored=0)), 16, CPU)
