"""Single steps in a bucket against the same steps as they are: tokens, drafts, keys and values; and what is ahead."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from engine.graphs.ahead import Ahead
from engine.graphs.buckets import Bucket
from engine.graphs.device import HostMark
from engine.graphs.fill import HostInputs
from engine.graphs.inputs import StepInputs, StepOutputs, num_bytes, parts_of
from engine.graphs.points import Points
from engine.graphs.steps import Launched
from kernels.step import rows_behind
from kernels.step.values import StepBefore
from model.bailing import BailingModel
from model.heads import LmHead
from scheduler.plan import UNKNOWN_TOKEN, GroupLoad, SequencePlan, SequenceResult, StepPlan
from scheduler.request import DraftMethod, Request, SamplingParams
from tests.engine.drafting_engines import draft_model, values_of
from tests.engine.graph_engines import drafting, graph_engine, graph_runner
from tests.engine.mixed_requests import CPU, ROOMY, tiny

SHAPE, BLOCK = "C", 4
TABLES = ([0, 1, 2, 3], [7, 5, 9, 4], [12, 10, 11, 13])
SAMPLING = (
    SamplingParams(max_tokens=20, temperature=0.0),
    SamplingParams(max_tokens=20, temperature=0.9, seed=3),
    SamplingParams(max_tokens=20, temperature=0.7, top_k=9, top_p=0.8, seed=4),
)
NUM_DRAFTS = 3


class World:
    """A runner of buckets, which keeps steps as they are, over one cache."""

    def __init__(self, method: DraftMethod, model: BailingModel | None = None) -> None:
        config = dataclasses.replace(drafting(ROOMY, method, 3), block_size=BLOCK, num_blocks=16)
        self.runner, self.kv, self.draft_kv = graph_runner(config, model or tiny(SHAPE), draft_model(method, SHAPE))
        self.method = method

    def sequences(self, rows: list[tuple[int, tuple[int, ...]]], num_logit_rows: int | None = None) -> StepPlan:
        """A plan whose sequence b has `rows[b]`: where it starts and its tokens; all rows are sampled unless said."""
        planned = [
            SequencePlan(
                sequence_id=place,
                token_ids=tokens,
                start=start,
                block_table=TABLES[place],
                num_logit_rows=len(tokens) if num_logit_rows is None else num_logit_rows,
                sampling=SAMPLING[place],
                sequence_index=0,
                output_index=start,
                draft_method=self.method,
                num_proposals=place + 1,  # one sequence wants a draft, the next two, the last three
            )
            for place, (start, tokens) in enumerate(rows)
        ]
        num_rows = sum(len(tokens) for _, tokens in rows)
        return StepPlan(step_id=0, sequences=tuple(planned), num_rows=num_rows, num_draft_passes=NUM_DRAFTS)

    def run(self, plan: StepPlan, *, in_bucket: bool) -> tuple[SequenceResult, ...]:
        shaped = dataclasses.replace(plan, shape=self.runner.shape(plan) if in_bucket else None)
        assert (self.runner.bucket(shaped) is not None) is in_bucket
        return self.runner.run(shaped).sequences


PROMPTS = [(0, (5, 6, 7, 8, 9)), (0, (40, 41, 42)), (0, (300, 7))]


def continued(world: World, num_right: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """The rows of verifications with so many right drafts and wrong ones behind them, from a run as it is."""
    first = world.run(world.sequences(PROMPTS, num_logit_rows=1), in_bucket=False)
    known = [list(tokens) + list(result.token_ids) for (_, tokens), result in zip(PROMPTS, first, strict=True)]
    for _ in range(NUM_DRAFTS):
        ends = [(len(tokens) - 1, (tokens[-1],)) for tokens in known]
        for tokens, result in zip(known, world.run(world.sequences(list(ends)), in_bucket=False), strict=True):
            tokens.extend(result.token_ids)
    rows: list[tuple[int, tuple[int, ...]]] = []
    for (_, prompt), tokens, right in zip(PROMPTS, known, num_right, strict=True):
        coming = [*tokens[len(prompt) : len(prompt) + 1 + right], *[(tokens[len(prompt) + 1] + 1) % 512] * 3]
        rows.append((len(prompt), tuple(coming[: 1 + NUM_DRAFTS])))
    return rows


@pytest.mark.parametrize("num_right", [(0, 0, 0), (3, 1, 0), (2, 3, 3)])
@pytest.mark.parametrize("method", [DraftMethod.EAGLE3, DraftMethod.MTP])
def test_a_step_in_a_bucket_is_the_step_as_it_is(method: DraftMethod, num_right: tuple[int, ...]) -> None:
    """Tokens, accepted drafts, proposals and the rows of both caches, with some drafts right and some wrong."""
    found = []
    for in_bucket in (True, False):
        world = World(method)
        plan = world.sequences(continued(world, num_right))
        for layer in (*world.kv.layers, world.draft_kv):
            assert layer is not None
            layer.key.zero_()
            layer.value.zero_()
        world.run(world.sequences(PROMPTS, num_logit_rows=1), in_bucket=False)
        results = world.run(plan, in_bucket=in_bucket)
        kept = [planned.start + len(result.token_ids) for planned, result in zip(plan.sequences, results, strict=True)]
        assert world.draft_kv is not None
        rows = [
            values_of(layer, TABLES[place], count)
            for place, count in enumerate(kept)
            for layer in (*world.kv.layers, world.draft_kv)
        ]
        found.append((results, rows))
    (results, rows), (expected, expected_rows) = found
    assert results == expected
    assert [len(result.token_ids) for result in results] == [1 + right for right in num_right]
    assert [len(result.draft_ids) for result in results] == [1, 2, 3]
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert torch.equal(row, expected_row)


@pytest.mark.parametrize("in_bucket", [True, False])
@pytest.mark.parametrize("method", [DraftMethod.EAGLE3, DraftMethod.MTP])
def test_a_sequence_without_drafts_leaves_the_draft_models_cache_alone(method: DraftMethod, in_bucket: bool) -> None:
    """A block of its prompt may be others', for whom the draft model has been over it."""
    world = World(method)
    plan = world.sequences(continued(world, (2, 3, 3)))
    plain = dataclasses.replace(plan.sequences[1], draft_method=DraftMethod.NONE, num_proposals=0)
    assert world.draft_kv is not None
    world.draft_kv.value.fill_(7.0)
    world.run(dataclasses.replace(plan, sequences=(plan.sequences[0], plain, plan.sequences[2])), in_bucket=in_bucket)
    is_written = [bool((world.draft_kv.value[list(table)] != 7.0).any()) for table in TABLES]
    assert is_written == [True, False, True]


class SickHead(LmHead):
    """Whose second row of logits is no number."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = super().__call__(hidden)
        logits[1:2] = float("nan")
        return logits


def test_a_round_ends_before_a_row_without_finite_logits() -> None:
    """The token of the row before is sound, also where the draft that leads to the sick row is right."""
    rows = continued(World(DraftMethod.EAGLE3), (3, 3, 3))
    outcomes = []
    for in_bucket in (False, True):
        sick = World(DraftMethod.EAGLE3, dataclasses.replace(tiny(SHAPE), lm_head=SickHead(tiny(SHAPE).lm_head.weight)))
        sick.run(sick.sequences(PROMPTS, num_logit_rows=1), in_bucket=False)
        outcomes.append(sick.run(sick.sequences(rows), in_bucket=in_bucket))
    told = [[(result.token_ids, result.error) for result in results] for results in outcomes]
    assert told[0] == told[1]
    assert told[0][0] == (rows[0][1][1:2], ""), "the draft is the token that was chosen, and its own row is sick"
    assert [len(token_ids) for token_ids, _ in told[0]] == [1, 4, 4]


def test_a_step_that_no_bucket_holds_has_no_shape() -> None:
    """So what has one on every rank of a group has a bucket for all of them."""
    world = World(DraftMethod.NONE)
    (planned,) = world.sequences([(3, (8,))]).sequences
    for num_sequences, is_held in ((12, True), (13, False)):
        plan = StepPlan(step_id=0, sequences=(planned,) * num_sequences, num_rows=num_sequences)
        assert (world.runner.shape(plan) is not None) is is_held


LOAD = GroupLoad(num_rows=2.5, num_sequences=1.5)  # agreed on when it was launched


def launched(*sequences: SequencePlan) -> Launched:
    mark, bucket = HostMark(), Bucket(num_sequences=2, rows_each=1)
    layout = StepOutputs.layout(bucket, 1)
    results = StepOutputs(**parts_of(torch.zeros(num_bytes(layout), dtype=torch.uint8), layout))
    return Launched(sequences=sequences, results=results, begin=mark, verified=mark, extended=mark, end=mark)


def ahead_of(foreseen: SequencePlan, before: SequencePlan) -> Ahead:
    coming = StepPlan(step_id=1, sequences=(foreseen,), num_rows=len(foreseen.token_ids), group=LOAD)
    return Ahead.of(launched(foreseen), coming, (before,), BLOCK)


def covers(ahead: Ahead, plan: StepPlan) -> bool:
    """Whether all of a plan is on its way; what is not runs behind on a rank that is alone, and waits in a group."""
    rest, part = ahead.rest_of(plan), ahead.part_of(plan)
    assert (*part.sequences, *rest) == plan.sequences and part.is_launched and part.group == LOAD
    assert part.num_rows == sum(len(planned.token_ids) for planned in part.sequences)
    return not rest


def test_a_row_that_lies_elsewhere_or_holds_another_token_is_not_the_one_on_its_way() -> None:
    table = [3, 4]
    before = dataclasses.replace(World(DraftMethod.NONE).sequences([(3, (8,))]).sequences[0], block_table=table)
    foreseen = dataclasses.replace(before, token_ids=(UNKNOWN_TOKEN,), start=4, output_index=4)
    ahead = ahead_of(foreseen, before).knowing([SequenceResult(token_ids=(9,))])
    right = dataclasses.replace(foreseen, token_ids=(9,))

    def is_covered(planned: SequencePlan) -> bool:
        return covers(ahead, StepPlan(step_id=1, sequences=(planned,), num_rows=1))

    assert is_covered(right)
    for changes in (
        {"token_ids": (7,)},
        {"token_ids": (9, 7)},
        {"sequence_id": 5},
        {"start": 5},
        {"output_index": 5},
        {"block_table": [3, 4]},  # preempted and let in again: equal blocks may hold something else by now
    ):
        assert not is_covered(dataclasses.replace(right, **changes)), changes
    table[1] = 6  # the block ahead was taken back, and another one given
    assert not is_covered(right)


def test_rows_with_drafts_come_as_foreseen_behind_the_accepted_ones_alone() -> None:
    table = [3, 4, 5]
    before = dataclasses.replace(
        World(DraftMethod.EAGLE3).sequences([(3, (8, 1, 2))]).sequences[0], block_table=table, num_proposals=2
    )
    foreseen = dataclasses.replace(before, token_ids=(UNKNOWN_TOKEN,) * 3, start=4, output_index=4)
    result = SequenceResult(token_ids=(1, 9), draft_ids=(6, 7))
    ahead = ahead_of(foreseen, before).knowing([result])
    right = dataclasses.replace(foreseen, token_ids=(9, 6, 7), start=5, output_index=5)

    def is_covered(planned: SequencePlan) -> bool:
        return covers(ahead, StepPlan(step_id=1, sequences=(planned,), num_rows=3))

    assert is_covered(right)
    changes: dict[str, Any]
    for changes in (
        {"start": 4, "output_index": 4},
        {"token_ids": (9, 6)},
        {"token_ids": (9, 6, 8)},
        {"num_proposals": 1},
        {"draft_method": DraftMethod.NONE},
    ):
        assert not is_covered(dataclasses.replace(right, **changes)), changes
    table[2] = 6  # where its last draft and those that it proposes would lie
    assert not is_covered(right)


def test_of_a_block_table_only_what_cannot_change_is_kept() -> None:
    """A block ahead may be taken back and another one given; a sequence that was preempted has other blocks."""
    bucket = Bucket(num_sequences=1, rows_each=1)
    layout = StepInputs.layout(bucket, 6, max_drafts=0)
    inputs = StepInputs(**parts_of(torch.zeros(num_bytes(layout), dtype=torch.uint8), layout))
    before = StepBefore.of(bucket.num_sequences, 0, CPU)
    host = HostInputs(bucket, inputs, before, BLOCK)

    def slots() -> list[int]:
        found: list[int] = rows_behind(before, inputs.planned, BLOCK, 99).slots.tolist()
        return found

    table = [3, 4, 5]
    planned = dataclasses.replace(World(DraftMethod.NONE).sequences([(4, (8,))]).sequences[0], block_table=table)
    host.fill([planned], Points())
    assert inputs.block_tables[0, :3].tolist() == [3, 4, 5] and slots() == [16]
    table[2:] = [8, 9]
    host.fill([dataclasses.replace(planned, start=8)], Points())
    assert inputs.block_tables[0, :4].tolist() == [3, 4, 8, 9] and slots() == [32]
    host.fill([dataclasses.replace(planned, block_table=[6, 7, 8])], Points())
    assert inputs.block_tables[0, :3].tolist() == [6, 7, 8] and slots() == [28]
    host.clear()
    assert slots() == [99] and inputs.num_live.tolist() == [0] and inputs.row_starts.tolist() == [0, 0]


def test_the_numbers_of_the_next_step_are_there_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it begins: making them takes time for which a device would wait."""
    for max_drafts in (0, 1, 3, 5):
        planned = World(DraftMethod.NONE).sequences([(3, (8,)), (7, (1,) * (1 + max_drafts))]).sequences[1]
        points = Points(max_drafts)
        for output_index in range(7, 60, 1 + max_drafts):
            points.prepare([dataclasses.replace(planned, output_index=output_index)])
            coming = dataclasses.replace(planned, output_index=output_index + 1 + max_drafts)
            expected = Points(max_drafts).of([coming]).tolist()
            with monkeypatch.context() as patched:
                patched.delattr("engine.graphs.points.uniforms")
                assert points.of([coming]).tolist() == expected


def test_what_is_cancelled_between_plan_and_step_takes_no_blocks() -> None:
    config = dataclasses.replace(ROOMY, block_size=4)
    world = graph_engine(config, SHAPE)
    sampling = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    for name in ("doomed", "other"):
        world.engine.add(Request(request_id=name, prompt=(1, 2, 3), sampling=sampling))
    world.engine.step()
    for _ in range(2):
        plan = world.engine.plan()
        world.engine.abort("doomed")
        world.engine.execute(plan)
        world.engine.check_integrity()
