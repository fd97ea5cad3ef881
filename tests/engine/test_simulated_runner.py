from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from engine.simulated_runner import SimulatedRunner, StaleKV, simulated_output
from scheduler.plan import SequencePlan, SequenceResult, StepPlan, StepTimes
from scheduler.request import DraftMethod, SamplingParams

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


def drafting(planned: SequencePlan, num_proposals: int = 0, method: DraftMethod = DraftMethod.EAGLE3) -> SequencePlan:
    return replace(planned, draft_method=method, num_proposals=num_proposals)


def verifying(planned: SequencePlan, *drafts: int) -> SequencePlan:
    return replace(planned, token_ids=(*planned.token_ids, *drafts), num_logit_rows=1 + len(drafts))


@pytest.fixture
def oracle() -> SimulatedRunner:
    return SimulatedRunner(block_size=4, draft_skill=1.0)


@pytest.mark.parametrize("num_right", range(4))
def test_drafts_are_accepted_up_to_the_first_wrong_one(runner: SimulatedRunner, num_right: int) -> None:
    output = simulated_output(PROMPT, GREEDY)
    drafts = [token + (i >= num_right) for i, token in enumerate(output[:3])]
    result = run(runner, verifying(rows(PROMPT, 0, [0, 1, 2]), *drafts))
    assert result.token_ids == output[: num_right + 1]


def test_drafts_are_as_good_as_their_skill(oracle: SimulatedRunner) -> None:
    output = simulated_output(PROMPT, GREEDY)
    assert run(oracle, drafting(rows(PROMPT, 0, [0, 1, 2]), 3)).draft_ids == output[1:4]
    wrong = SimulatedRunner(block_size=4, draft_skill=0.0)
    proposed = run(wrong, drafting(rows(PROMPT, 0, [0, 1, 2]), 3)).draft_ids
    assert len(proposed) == 3 and proposed[0] != output[1]


def test_a_sequence_that_is_followed_late_has_stale_draft_rows(oracle: SimulatedRunner) -> None:
    first = run(oracle, rows(PROMPT, 0, [0, 1])).token_ids
    with pytest.raises(StaleKV, match="draft model's row at position 0"):
        run(oracle, drafting(rows(first, 6, [0, 1])))


def test_a_row_of_the_draft_model_depends_on_the_token_behind_it(oracle: SimulatedRunner) -> None:
    chunk = replace(drafting(rows(PROMPT[:4], 0, [0])), num_logit_rows=0)
    run(oracle, replace(chunk, next_token_id=PROMPT[4]))
    run(oracle, drafting(rows(PROMPT[4:], 4, [0, 1])))
    run(oracle, replace(chunk, next_token_id=PROMPT[4] + 1))
    with pytest.raises(StaleKV, match="position 3"):
        run(oracle, drafting(rows(PROMPT[4:], 4, [0, 1])))


def test_rows_that_only_drafts_stand_behind_are_stale(oracle: SimulatedRunner) -> None:
    first = run(oracle, drafting(rows(PROMPT, 0, [0, 1, 2]), 3))
    # The rows of accepted drafts are written again by the step that verifies them: leaving one out is found out.
    output = simulated_output(PROMPT, GREEDY)
    run(oracle, verifying(rows(first.token_ids, 6, [0, 1, 2]), *first.draft_ids[:1]))
    with pytest.raises(StaleKV, match="position 6"):
        run(oracle, drafting(rows(output[2:3], 8, [0, 1, 2])))


def test_proposals_need_room_for_their_rows(oracle: SimulatedRunner) -> None:
    run(oracle, drafting(rows(PROMPT, 0, [0, 1]), 2))
    with pytest.raises(AssertionError, match="no room for all rows in 8 positions"):
        run(oracle, drafting(rows(PROMPT, 0, [0, 1]), 3))


def test_a_look_up_reads_the_whole_history(oracle: SimulatedRunner) -> None:
    planned = drafting(rows(PROMPT, 0, [0, 1, 2]), 4, DraftMethod.NGRAM)
    proposed = run(oracle, replace(planned, history=PROMPT)).draft_ids
    assert proposed == simulated_output(PROMPT, GREEDY)[1 : len(proposed) + 1]
    with pytest.raises(StaleKV, match="history of 5 tokens"):
        run(oracle, replace(planned, history=PROMPT[:5]))


def test_a_step_takes_as_long_as_it_is_told() -> None:
    runner = SimulatedRunner(block_size=4, times=lambda plan: StepTimes(forward_s=0.5 * plan.num_rows))
    assert runner.run(StepPlan(step_id=1, sequences=(), num_rows=4)).times.forward_s == 2.0
