from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from engine.simulated_runner import SimulatedRunner, StaleKV, simulated_output
from scheduler.plan import SequencePlan, SequenceResult, StepPlan
from scheduler.request import SamplingParams

PROMPT = (5, 6, 7, 8, 9, 10)
GREEDY = SamplingParams(max_tokens=6, temperature=0.0)


def rows(token_ids: Sequence[int], start: int, block_table: Sequence[int]) -> SequencePlan:
    return SequencePlan(
        sequence_id=1,
        token_ids=tuple(token_ids),
        start=start,
        block_table=block_table,
        num_logit_rows=1,
        sampling=GREEDY,
        sequence_index=0,
        output_index=0,
    )


@pytest.fixture
def runner() -> SimulatedRunner:
    return SimulatedRunner(block_size=4)


def run(runner: SimulatedRunner, planned: SequencePlan) -> SequenceResult:
    plan = StepPlan(step_id=1, sequences=(planned,), num_rows=len(planned.token_ids))
    return runner.run(plan).sequences[0]


def test_chunks_and_blocks_do_not_change_the_token(runner: SimulatedRunner) -> None:
    whole = run(runner, rows(PROMPT, 0, [0, 1]))
    run(runner, rows(PROMPT[:3], 0, [7, 2]))
    run(runner, rows(PROMPT[3:5], 3, [7, 2]))
    assert run(runner, rows(PROMPT[5:], 5, [7, 2])) == whole
    assert whole.token_ids == simulated_output(PROMPT, GREEDY)[:1]


def test_any_token_of_the_past_changes_the_token(runner: SimulatedRunner) -> None:
    whole = run(runner, rows(PROMPT, 0, [0, 1])).token_ids
    others = [(*PROMPT[:i], PROMPT[i] + 100, *PROMPT[i + 1 :]) for i in range(len(PROMPT))]
    tokens = [run(runner, rows(other, 0, [0, 1])).token_ids for other in others]
    assert sum(token != whole for token in tokens) >= 5, "one in 256 may agree by chance"


def test_a_block_that_was_never_written_is_stale(runner: SimulatedRunner) -> None:
    with pytest.raises(StaleKV, match=r"block 3 does not hold positions \[0, 4\)"):
        run(runner, rows(PROMPT[4:], 4, [3, 1]))


def test_a_block_overwritten_by_another_sequence_is_stale(runner: SimulatedRunner) -> None:
    run(runner, rows(PROMPT, 0, [0, 1]))
    run(runner, rows((50, 51), 0, [0]))
    with pytest.raises(StaleKV, match="block 0"):
        run(runner, rows((11,), 6, [0, 1]))


def test_swapped_blocks_are_stale(runner: SimulatedRunner) -> None:
    run(runner, rows([*PROMPT, 11, 12], 0, [0, 1]))
    with pytest.raises(StaleKV):
        run(runner, rows((13,), 8, [1, 0, 2]))


def test_a_block_of_another_past_is_stale(runner: SimulatedRunner) -> None:
    run(runner, rows([*PROMPT, 11, 12], 0, [0, 1]))
    run(runner, rows([99, *PROMPT[1:], 11, 12], 0, [2, 3]))
    with pytest.raises(StaleKV, match="block 3"):
        run(runner, rows((13,), 8, [0, 3, 4]))


def test_a_shared_block_serves_both(runner: SimulatedRunner) -> None:
    run(runner, rows(PROMPT[:4], 0, [0]))
    shared = run(runner, rows(PROMPT[4:], 4, [0, 1]))
    assert run(runner, rows(PROMPT[4:], 4, [0, 2])) == shared


def test_drawn_tokens_depend_on_seed_sequence_and_place() -> None:
    drawn = replace(GREEDY, temperature=1.0, max_tokens=8)
    outputs = {
        simulated_output(PROMPT, replace(drawn, seed=seed), sequence_index=index) for seed in (0, 1) for index in (0, 1)
    }
    assert len(outputs) == 4
    assert simulated_output(PROMPT, drawn) == simulated_output(PROMPT, drawn)


def test_min_tokens_hides_the_stop_tokens() -> None:
    free = simulated_output(PROMPT, GREEDY)
    assert simulated_output(PROMPT, GREEDY, stop_token_ids=free[1:2]) == free[:2]
    longer = simulated_output(PROMPT, replace(GREEDY, min_tokens=4), stop_token_ids=free[1:2])
    assert len(longer) > 4
    assert free[1] not in longer[:4]


def test_the_output_ends_with_the_context() -> None:
    assert len(simulated_output(PROMPT, GREEDY, max_context=8)) == 2


def test_prompt_rows_are_scored_against_what_follows(runner: SimulatedRunner) -> None:
    scored = replace(
        rows(PROMPT, 0, [0, 1]),
        prompt_logprob_targets=PROMPT[1:],
        sampling=replace(GREEDY, num_prompt_logprobs=2, num_logprobs=1),
    )
    result = run(runner, scored)
    assert [score.token_id for score in result.prompt_logprobs] == [*PROMPT[1:]]
    assert all(len(score.top) == 2 and score.logprob <= 0.0 for score in result.prompt_logprobs)
    assert [score.token_id for score in result.logprobs] == [*result.token_ids]


def test_a_chosen_token_fails_its_sequence_alone() -> None:
    runner = SimulatedRunner(block_size=4, error_token_id=9)
    plan = StepPlan(step_id=1, sequences=(rows(PROMPT, 0, [0, 1]), rows(PROMPT[:3], 0, [2])), num_rows=9)
    bad, good = runner.run(plan).sequences
    assert "token 9" in bad.error
    assert good.token_ids and not good.error
