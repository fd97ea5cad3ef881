from __future__ import annotations

from scheduler.request import FinishReason, Request
from scheduler.sequence import Sequence, stop_ids
from tests.scheduler.world import asking, request


def sequence(asked: Request, stop_token_ids: tuple[int, ...] = ()) -> Sequence:
    return Sequence(
        sequence_id=1,
        index=0,
        request=asked,
        turn=0.0,
        arrival_s=0.0,
        stop_token_ids=stop_token_ids,
        tokens=[*asked.prompt],
    )


def test_a_chunk_inside_the_prompt_wants_no_logits() -> None:
    taken = sequence(request("r", length=6)).rows(5)
    assert (taken.start, taken.num_logit_rows, taken.output_index) == (0, 0, 0)
    assert taken.token_ids == request("r", length=6).prompt[:5]


def test_the_chunk_that_ends_the_prompt_wants_one() -> None:
    catching_up = sequence(request("r", length=6))
    catching_up.num_computed = 5
    taken = catching_up.rows(1)
    assert (taken.start, taken.num_logit_rows, taken.token_ids) == (5, 1, request("r", length=6).prompt[5:])


def test_history_is_given_where_a_penalty_reads_it() -> None:
    assert sequence(request("r")).rows(1).history == ()
    for penalty in ({"repetition_penalty": 1.1}, {"presence_penalty": 0.1}, {"frequency_penalty": -0.1}):
        assert sequence(asking(request("r"), **penalty)).rows(1).history == [*request("r").prompt]


def test_the_targets_of_prompt_rows_are_the_tokens_after_them() -> None:
    scored = sequence(asking(request("r", length=6), num_prompt_logprobs=0))
    scored.prompt_scores = []
    prompt = scored.request.prompt
    assert scored.rows(4).prompt_logprob_targets == prompt[1:5]
    scored.num_computed = 4
    assert scored.rows(2).prompt_logprob_targets == prompt[5:], "the last row predicts output, not prompt"


def test_several_tokens_are_kept_up_to_the_first_that_ends() -> None:
    verified = sequence(request("r", max_tokens=9), stop_token_ids=(7,))
    assert verified.accept((3, 7, 4), 100) == 2
    assert verified.tokens[-2:] == [3, 7]
    assert verified.finish_reason is FinishReason.STOP


def test_several_tokens_are_cut_at_max_tokens_and_at_the_context() -> None:
    short = sequence(request("r", max_tokens=2))
    assert short.accept((3, 4, 5), 100) == 2
    assert short.finish_reason is FinishReason.LENGTH
    narrow = sequence(request("r", length=6, max_tokens=9))
    assert narrow.accept((3, 4, 5), 7) == 1
    assert narrow.finish_reason is FinishReason.LENGTH


def test_an_end_on_the_last_token_allowed_is_a_stop() -> None:
    ending = sequence(request("r", max_tokens=1), stop_token_ids=(7,))
    ending.accept((7,), 100)
    assert ending.finish_reason is FinishReason.STOP


def test_a_stop_token_before_min_tokens_is_a_token_like_others() -> None:
    early = sequence(asking(request("r", max_tokens=9), min_tokens=2), stop_token_ids=(7,))
    assert early.accept((7, 7), 100) == 2
    assert early.finish_reason is None
    early.accept((7,), 100)
    assert early.finish_reason is FinishReason.STOP


def test_ends_of_text_count_unless_they_are_ignored() -> None:
    asked = asking(request("r"), stop_token_ids=(5,))
    assert set(stop_ids(asked.sampling, (1, 2))) == {1, 2, 5}
    assert stop_ids(asking(asked, ignore_eos=True).sampling, (1, 2)) == (5,)
