"""What runs before the first request, and what it tells of costs."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from engine.config import EngineConfig, SpeculationConfig
from engine.runner import Foresight, nothing_foreseen
from engine.warm_up import warm_up
from scheduler.plan import SequencePlan, SequenceResult, StepPlan, StepResult, StepShape, StepTimes
from scheduler.request import DraftMethod

VOCAB = 500


class Remembering:
    """A runner that says the token after the one it is given, in a millisecond for each row."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.plans: list[StepPlan] = []
        self._num_blocks, self._block_size = num_blocks, block_size

    def shape(self, plan: StepPlan) -> StepShape | None:
        return None

    def under_way(self, plan: StepPlan) -> StepPlan | None:
        return None

    def run(self, plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        self.plans.append(plan)
        for planned in plan.sequences:
            assert all(0 <= block < self._num_blocks for block in planned.block_table)
            last = planned.start + len(planned.token_ids) + max(planned.num_proposals - 1, 0)
            assert len(planned.block_table) * self._block_size >= last
        results = tuple(
            SequenceResult(token_ids=tuple((token + 1) % VOCAB for token in planned.token_ids))
            for planned in plan.sequences
        )
        times = StepTimes(forward_s=plan.num_rows * 1e-3, draft_s=3e-4, extend_s=2e-4)
        return StepResult(step_id=plan.step_id, sequences=results, times=times)


CONFIG = EngineConfig(
    model_dir="",
    block_size=4,
    max_sequences=16,
    max_rows_per_step=64,
    speculation=SpeculationConfig(method=DraftMethod.EAGLE3, draft_dir="head", max_drafts=5),
)


def following(planned: SequencePlan) -> bool:
    """Whether the rows are a text as the runner says them."""
    ids = planned.token_ids
    return all((one + 1) % VOCAB == other for one, other in itertools.pairwise(ids))


@pytest.mark.parametrize("max_drafts", [1, 2, 5, 12])
@pytest.mark.parametrize("max_sequences", [1, 3, 16])
def test_steps_are_such_as_the_engine_has(max_sequences: int, max_drafts: int) -> None:
    """No more sequences, no more rows of one; and the first is a prompt's chunk, not a verification."""
    speculation = dataclasses.replace(CONFIG.speculation, max_drafts=max_drafts)
    config = dataclasses.replace(CONFIG, max_sequences=max_sequences, speculation=speculation)
    runner = Remembering(200, config.block_size)
    measured = warm_up(runner, config, vocab_size=VOCAB, num_blocks=200, context_limit=60)
    assert max(step.num_rows for step in measured) * 2 > min(max_sequences * (1 + max_drafts), 64)
    assert runner.plans[0].sequences[0].num_logit_rows == 1
    for plan in runner.plans[-3 * len(measured) :]:
        assert len(plan.sequences) <= max_sequences
        assert max(len(planned.token_ids) for planned in plan.sequences) <= 1 + max_drafts
        assert all(planned.start + len(planned.token_ids) + 1 < 60 for planned in plan.sequences)


@pytest.mark.parametrize("num_blocks", [200, 3])
def test_costs_are_those_of_rows_of_what_the_model_says(num_blocks: int) -> None:
    runner = Remembering(num_blocks, CONFIG.block_size)
    measured = warm_up(runner, CONFIG, vocab_size=VOCAB, num_blocks=num_blocks, context_limit=100)
    assert [step.num_rows for step in measured] == [1, 2, 4, 8, 16, 32, 64]
    assert [step.model_s for step in measured] == pytest.approx([1e-3 * step.num_rows for step in measured])
    assert all(step.num_passes == 1 and step.draft_s == pytest.approx(1e-4) for step in measured)
    large = [plan for plan in runner.plans if plan.num_rows == 64]
    assert large and all(len(plan.sequences) == 16 and all(map(following, plan.sequences)) for plan in large)
    assert len({planned.token_ids for planned in large[0].sequences}) == 16
    assert all(planned.start >= 16 for planned in large[0].sequences)


def test_nothing_is_measured_where_nothing_is_chosen() -> None:
    fixed = dataclasses.replace(CONFIG.speculation, adaptive=False)
    for config, context_limit in (
        (dataclasses.replace(CONFIG, speculation=SpeculationConfig()), 100),
        (dataclasses.replace(CONFIG, speculation=fixed), 100),
        (CONFIG, 9),
    ):
        runner = Remembering(50, CONFIG.block_size)
        assert warm_up(runner, config, vocab_size=VOCAB, num_blocks=50, context_limit=context_limit) == ()
        assert len(runner.plans) == 2
