"""The gateway over real gRPC and simulated ranks: what well-meaning clients see."""

from __future__ import annotations

import pytest

from engine.simulated_runner import simulated_output
from scheduler.request import SamplingParams
from sigmoe.v1 import inference_service_pb2 as pb
from sigmoe.v1 import types_pb2
from tests.cluster.checkpoint_folder import END, ROLE_END, VOCAB_SIZE, train_tokenizer
from tests.cluster.conftest import Start, World
from tests.cluster.grpc_calls import answers, generate, sampling, violations

TOKENIZER = train_tokenizer()
PROMPT = TOKENIZER.encode("What is asthma?").ids


def expected(prompt: list[int], max_tokens: int = 8, index: int = 0, **fields: float) -> list[int]:
    params = SamplingParams(**{"max_tokens": max_tokens, "temperature": 0.0, **fields})  # type: ignore[arg-type]
    return list(simulated_output(prompt, params, vocab_size=VOCAB_SIZE, sequence_index=index))


def decoded(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True)).rstrip("\ufffd")


async def test_text_in_text_out(world: World) -> None:
    (answer,) = (await answers(world.inference.Generate(generate()))).values()
    assert answer.token_ids == expected(PROMPT)
    assert answer.text.rstrip("\ufffd") == decoded(answer.token_ids)
    assert answer.endings == [types_pb2.FINISH_REASON_LENGTH]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.output_tokens) == (len(PROMPT), 8)


async def test_token_ids_are_the_same_prompt(world: World) -> None:
    (answer,) = (await answers(world.inference.Generate(generate(PROMPT)))).values()
    assert answer.token_ids == expected(PROMPT)


async def test_a_response_has_no_ids_unless_asked_for(world: World) -> None:
    request = generate()
    request.return_token_ids = False
    responses = [response async for response in world.inference.Generate(request)]
    assert not any(response.token_ids for response in responses)
    assert len({response.request_id for response in responses}) == 1


async def test_a_whole_answer_is_one_response_and_the_same_one(world: World) -> None:
    (streamed,) = (await answers(world.inference.Generate(generate(max_tokens=40)))).values()
    request = generate(max_tokens=40)
    request.whole = True
    (response,) = [response async for response in world.inference.Generate(request)]
    assert (response.text, list(response.token_ids)) == (streamed.text, streamed.token_ids)


async def test_every_sequence_has_its_own_random_numbers(world: World) -> None:
    found = await answers(world.inference.Generate(generate(n=3, temperature=1.0, seed=2**64 - 1)))
    for index in range(3):
        assert found[index].token_ids == expected(PROMPT, index=index, temperature=1.0, seed=2**64 - 1)
    assert len({tuple(answer.token_ids) for answer in found.values()}) == 3


async def test_without_a_seed_one_is_drawn(world: World) -> None:
    drawn = [await answers(world.inference.Generate(generate(temperature=1.0, max_tokens=20))) for _ in range(2)]
    assert drawn[0][0].token_ids != drawn[1][0].token_ids


async def test_log_probabilities_have_texts(world: World) -> None:
    (answer,) = (await answers(world.inference.Generate(generate(logprobs=2, prompt_logprobs=1)))).values()
    assert [entry.token.token_id for entry in answer.logprobs] == answer.token_ids
    assert [entry.token.token_id for entry in answer.prompt_logprobs] == PROMPT[1:]
    assert {len(entry.top) for entry in answer.logprobs} == {2}
    assert {len(entry.top) for entry in answer.prompt_logprobs} == {1}
    assert [entry.token.text for entry in answer.prompt_logprobs] == [TOKENIZER.decode([i]) for i in PROMPT[1:]]


async def test_prompt_scores_alone_come_in_order(world: World) -> None:
    request = generate([5] * 100, prompt_logprobs=20, max_tokens=1)
    (answer,) = (await answers(world.inference.Generate(request))).values()
    assert len(answer.prompt_logprobs) == 99


async def test_a_stop_string_ends_the_sequence_on_its_rank(world: World) -> None:
    ids = expected(PROMPT, max_tokens=40)
    text = decoded(ids)
    stop = text[10:13]
    found = await answers(world.inference.Generate(generate(max_tokens=40, stop=[stop])))
    assert found[0].text == text[: text.index(stop)]
    assert found[0].endings == [types_pb2.FINISH_REASON_STOP]
    assert len(found[0].token_ids) < 40
    assert found[0].usage is not None and found[0].usage.output_tokens == len(found[0].token_ids)
    assert len(world.executor.cancelled) == 1


async def test_stop_strings_end_each_sequence_by_itself(world: World) -> None:
    request = generate(n=3, temperature=1.0, seed=5, max_tokens=60, stop=["a", "e"])
    found = await answers(world.inference.Generate(request))
    for index, answer in found.items():
        ids = expected(PROMPT, max_tokens=60, index=index, temperature=1.0, seed=5)
        assert answer.token_ids == ids[: len(answer.token_ids)]
        assert answer.text == decoded(ids).split("a")[0].split("e")[0]


async def test_end_of_text_stops_and_does_not_show(start: Start) -> None:
    stop = expected(PROMPT, max_tokens=20)[5]
    async with start(eos=(END, ROLE_END)) as world:
        found = await answers(world.inference.Generate(generate(max_tokens=20, stop_token_ids=[stop])))
        assert found[0].token_ids == expected(PROMPT, max_tokens=20)[:6]
        assert found[0].endings == [types_pb2.FINISH_REASON_STOP]
        assert found[0].text.rstrip("\ufffd") == decoded(found[0].token_ids[:5])


async def test_chat_renders_the_template(world: World) -> None:
    messages = [types_pb2.ChatMessage(role="user", content="Hi")]
    found = await answers(
        world.inference.Chat(pb.ChatRequest(messages=messages, sampling=sampling(), return_token_ids=True))
    )
    prompt = (
        "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>"
    )
    assert found[0].token_ids == expected(TOKENIZER.encode(prompt).ids)
    tokenized = await world.inference.Tokenize(pb.TokenizeRequest(messages=pb.ChatMessages(messages=messages)))
    assert list(tokenized.ids) == TOKENIZER.encode(prompt).ids
    assert "".join(tokenized.pieces) == prompt


async def test_score(world: World) -> None:
    response = await world.inference.Score(pb.ScoreRequest(text="What is asthma?", top_logprobs=2))
    assert list(response.token_ids) == PROMPT
    assert [entry.token.token_id for entry in response.logprobs] == PROMPT[1:]
    assert {len(entry.top) for entry in response.logprobs} == {2}
    assert response.total_logprob == pytest.approx(sum(entry.token.logprob for entry in response.logprobs))
    assert (response.usage.prompt_tokens, response.usage.output_tokens) == (len(PROMPT), 0)
    whole = await world.inference.Score(pb.ScoreRequest(tokens=types_pb2.TokenIds(ids=[5] * 128)))
    assert len(whole.logprobs) == 127


async def test_tokenize_takes_more_than_the_context(world: World) -> None:
    text = "What is asthma? " * 10_000
    tokens = await world.inference.Tokenize(pb.TokenizeRequest(text=text))
    assert "".join(tokens.pieces) == text
    assert (await world.inference.Detokenize(pb.DetokenizeRequest(ids=tokens.ids))).text == text
    found = await violations(world.inference.Tokenize(pb.TokenizeRequest(text="a" * (2**18 + 1))))
    assert found == {"text": "262145 bytes of text: at most 262144 are allowed"}
    found = await violations(world.inference.Detokenize(pb.DetokenizeRequest(ids=[5] * (2**18 + 1))))
    assert found == {"ids": "262145 ids: at most 262144 are allowed"}


async def test_tokenize_and_detokenize(world: World) -> None:
    text = "Grüße, 哮喘 😀<|role_end|>"
    tokens = await world.inference.Tokenize(pb.TokenizeRequest(text=text))
    assert (await world.inference.Detokenize(pb.DetokenizeRequest(ids=tokens.ids))).text == text
    visible = await world.inference.Detokenize(pb.DetokenizeRequest(ids=tokens.ids, skip_special_tokens=True))
    assert visible.text == text.removesuffix("<|role_end|>")
    assert (await world.inference.Tokenize(pb.TokenizeRequest(text=""))).ids == []
    assert set(await violations(world.inference.Tokenize(pb.TokenizeRequest()))) == {"input"}
    assert await violations(world.inference.Detokenize(pb.DetokenizeRequest(ids=[1, 512]))) == {
        "ids[1]": "token id 512 is not allowed: 0 to 511 is"
    }
