from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.sequence_stream import Chunk, SequenceStream, TextRules
from cluster.stop_strings import StopAutomaton
from cluster.tokenizer import Tokenizer
from scheduler.request import ALONE, DraftCounts, FinishReason, Round, TokenDelta, TokenLogprob, Usage
from tests.cluster.checkpoint_folder import END, ROLE_END, train_tokenizer

TOKENIZER = Tokenizer(train_tokenizer())
USAGE = Usage(num_prompt_tokens=3, num_cached_tokens=2, num_output_tokens=99, queue_s=0.5, prefill_s=1.5, decode_s=2.5)


def rules(*stops: str, min_tokens: int = 0, hidden: tuple[int, ...] = (END, ROLE_END)) -> TextRules:
    automaton = StopAutomaton(stops) if stops else None
    return TextRules(pieces=TOKENIZER.shown, hidden_ids=frozenset(hidden), stops=automaton, min_tokens=min_tokens)


def sequence(text_rules: TextRules) -> SequenceStream:
    return SequenceStream(0, num_prompt_tokens=3, rules=text_rules)


def delta(*token_ids: int, reason: FinishReason | None = None, **fields: object) -> TokenDelta:
    return TokenDelta(request_id="a", sequence_index=0, token_ids=token_ids, finish_reason=reason, **fields)  # type: ignore[arg-type]


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode_now(text)


def chunks_of(stream: SequenceStream, deltas: list[TokenDelta]) -> list[Chunk]:
    chunks = []
    for one in deltas:
        stream.push(one)
        chunks.append(stream.take())
    return chunks


@given(st.lists(st.lists(st.integers(0, 479), max_size=3), max_size=10))
def test_streamed_text_is_the_decoded_text(groups: list[list[int]]) -> None:
    stream = sequence(rules())
    chunks = chunks_of(stream, [delta(*group) for group in groups])
    whole = TOKENIZER.decode([t for group in groups for t in group], skip_special_tokens=True)
    text = "".join(chunk.text for chunk in chunks)
    assert whole.startswith(text) and set(whole[len(text) :]) <= {"\ufffd"}
    assert [chunk.token_ids for chunk in chunks] == [tuple(group) for group in groups]


def test_only_whole_characters_are_sent() -> None:
    ids = [i for byte in "😀".encode() for i, piece in TOKENIZER.pieces.items() if piece == bytes([byte])]
    chunks = chunks_of(sequence(rules()), [delta(i) for i in ids])
    assert [chunk.text for chunk in chunks] == ["", "", "", "😀"]


def test_half_a_character_at_the_end_is_dropped() -> None:
    first = next(i for i, piece in TOKENIZER.pieces.items() if piece == "哮".encode()[:1])
    stream = sequence(rules())
    (chunk,) = chunks_of(stream, [delta(*ids_of("a"), first, reason=FinishReason.LENGTH)])
    assert chunk.text == "a"


def test_the_ending_token_never_shows() -> None:
    stop_id = ids_of("x")[0]
    stream = sequence(rules(hidden=(END, stop_id)))
    (chunk,) = chunks_of(stream, [delta(*ids_of("a"), stop_id, reason=FinishReason.STOP, usage=USAGE)])
    assert (chunk.text, chunk.token_ids[-1], chunk.finish_reason) == ("a", stop_id, FinishReason.STOP)


def test_a_stop_string_across_tokens_ends_text_and_tokens_there() -> None:
    first, second, later = ids_of("ab"), ids_of("cd"), ids_of("ef")
    stream = sequence(rules("bc"))
    stream.push(delta(*first))
    stream.push(delta(*second, *later))
    assert stream.is_stopped and not stream.is_finished
    stream.push(delta(*later))
    stream.push(delta(reason=FinishReason.CANCELLED, usage=USAGE))
    chunk = stream.take()
    assert chunk.text == "a"
    assert chunk.finish_reason is FinishReason.STOP
    assert chunk.token_ids == tuple(stream.token_ids) == (*first, second[0])
    assert chunk.usage is not None and chunk.usage.num_output_tokens == len(stream.token_ids)
    assert chunk.usage.decode_s == 2.5


def test_rounds_are_counted_as_far_as_their_tokens_are_taken() -> None:
    """The stop string ends in the second of the round's three tokens; what the rank ran behind it is nobody's."""
    ids = [ids_of(character)[0] for character in "abcdef"]
    stream = sequence(rules("cd"))
    stream.push(delta(ids[0]))
    stream.push(delta(*ids[1:3], rounds=(Round(1, 1, 2),)))
    stream.push(delta(*ids[3:], rounds=(Round(3, 2, 3),)))
    stream.push(delta(*ids, rounds=(Round(5, 5, 6),)))
    assert stream.take().drafts is None, "they come with the end"
    stream.push(delta(reason=FinishReason.CANCELLED, usage=USAGE))
    chunk = stream.take()
    assert chunk.token_ids == () and chunk.usage is not None and chunk.usage.num_output_tokens == 4
    assert chunk.drafts == DraftCounts(num_rounds=2, num_committed=2 + 1, drafted=(2, 1, 1), accepted=(2, 1, 0))
    assert chunk.drafts.rounds_by_length == (1, 0, 1)


@pytest.mark.parametrize("stop", ["a", "b", "c", "d", "e"])
def test_rounds_of_several_steps_in_one_delta_are_cut_as_well(stop: str) -> None:
    ids = [ids_of(character)[0] for character in "abcde"]
    steps = (ALONE, Round(2, 1, 2), ALONE, Round(1, 0, 1))
    stream = sequence(rules(stop))
    stream.push(delta(*ids, rounds=steps, reason=FinishReason.LENGTH, usage=USAGE))
    drafts = stream.take().drafts
    assert drafts is not None
    found = (drafts.num_rounds, drafts.num_committed, drafts.drafted, drafts.accepted)
    assert (
        found
        == {
            "a": (0, 0, (), ()),
            "b": (1, 1, (1, 1), (1, 0)),
            "c": (1, 2, (1, 1), (1, 0)),
            "d": (1, 2, (1, 1), (1, 0)),
            "e": (2, 3, (2, 1), (1, 0)),
        }[stop]
    )


def test_what_was_held_back_comes_with_another_end() -> None:
    stream = sequence(rules("ax"))
    chunks = chunks_of(stream, [delta(*ids_of("a")), delta(reason=FinishReason.LENGTH)])
    assert [chunk.text for chunk in chunks] == ["", "a"]


def test_stop_strings_wait_for_min_tokens() -> None:
    ids = ids_of("x") * 5
    stream = sequence(rules("xx", min_tokens=3))
    stream.push(delta(*ids))
    stream.push(delta(reason=FinishReason.CANCELLED))
    assert stream.take().text == "xxx"


def test_log_probabilities_end_with_the_tokens() -> None:
    ids = ids_of("a") + ids_of("b") + ids_of("c")
    entries = tuple(TokenLogprob(token_id=i, logprob=-1.0) for i in ids)
    stream = sequence(rules("b"))
    stream.push(delta(*ids, logprobs=entries))
    assert stream.take().logprobs == entries[:2]


def test_nothing_is_taken_after_the_end() -> None:
    stream = sequence(rules())
    stream.push(delta(*ids_of("a"), reason=FinishReason.LENGTH, usage=USAGE))
    stream.push(delta(*ids_of("b"), reason=FinishReason.ERROR, error="again"))
    chunk, rest = stream.take(), stream.take()
    assert (chunk.text, chunk.finish_reason) == ("a", FinishReason.LENGTH)
    assert rest == Chunk(index=0)
    with pytest.raises(AssertionError, match="ends twice"):
        stream.finish(FinishReason.STOP)


def test_an_end_without_figures_counts_for_itself() -> None:
    stream = sequence(rules())
    stream.push(delta(*ids_of("ab"), reason=FinishReason.ERROR, error="broken"))
    chunk = stream.take()
    assert chunk.error == "broken"
    assert chunk.usage == Usage(num_prompt_tokens=3, num_cached_tokens=0, num_output_tokens=len(ids_of("ab")))


def test_prompt_scores_are_taken_once() -> None:
    scores = (TokenLogprob(token_id=1, logprob=-1.0, top=((2, -0.5),)),)
    stream = sequence(rules())
    stream.push(delta(*ids_of("a"), prompt_logprobs=scores))
    stream.push(delta(*ids_of("b"), prompt_logprobs=scores))
    assert stream.num_pending == 2 + 2
    assert stream.take().prompt_logprobs == scores
    assert stream.take().prompt_logprobs == ()


def test_ids_without_a_token_are_silent() -> None:
    (chunk,) = chunks_of(sequence(rules()), [delta(511)])
    assert (chunk.text, chunk.token_ids) == ("", (511,))
