"""The gateway over real gRPC and simulated ranks: what is refused, and what is filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.served_model import GenerationDefaults
from model.errors import CheckpointError
from scheduler.request import SamplingParams
from sigmoe.errors import InvalidRequest, Violation
from sigmoe.v1 import inference_service_pb2 as pb
from sigmoe.v1 import types_pb2
from tests.cluster.conftest import Start, World
from tests.cluster.grpc_calls import answers, failure, generate, sampling, violations


async def test_the_model_s_defaults_fill_what_is_absent(world: World) -> None:
    await answers(world.inference.Generate(pb.GenerateRequest(text="a")))
    ((_, request),) = world.executor.submitted
    assert request.sampling.temperature == 0.5
    assert request.sampling.top_p == 0.75
    assert request.sampling.top_k == 7
    assert request.sampling.repetition_penalty == 1.0
    assert request.sampling.max_tokens == 128 - 1, "what is left of the context, at most 1024"
    assert request.sampling.num_logprobs is None


async def test_what_is_given_arrives(world: World) -> None:
    given = sampling(
        min_tokens=2, temperature=0.25, top_k=3, top_p=0.5, min_p=0.125, repetition_penalty=1.5, presence_penalty=-2.0,
        frequency_penalty=2.5, logit_bias={7: 1.5, 3: -4.0}, seed=11, stop_token_ids=[9], logprobs=0,
    )  # fmt: skip
    await answers(world.inference.Generate(pb.GenerateRequest(text="a", sampling=given, priority=-100)))
    ((_, request),) = world.executor.submitted
    assert request.priority == -100
    assert request.deadline_s is None
    assert request.sampling == SamplingParams(
        max_tokens=8, min_tokens=2, temperature=0.25, top_k=3, top_p=0.5, min_p=0.125, repetition_penalty=1.5,
        presence_penalty=-2.0, frequency_penalty=2.5, logit_bias=((3, -4.0), (7, 1.5)), seed=11, stop_token_ids=(9,),
        ignore_eos=True, num_logprobs=0,
    )  # fmt: skip


async def test_the_kv_cache_may_bound_the_context(start: Start) -> None:
    async with start(max_context=4096) as world:
        kv_tokens = world.executor.info().kv_tokens_per_rank
        assert (await world.inference.GetModel(pb.GetModelRequest())).max_context == kv_tokens == 2048
        found = await violations(world.inference.Generate(generate([5] * 2048)))
        assert "the context holds 2048" in found["tokens.ids"]


async def test_prompt_scores_are_bounded_by_their_number(start: Start) -> None:
    async with start(max_context=100_000, num_blocks=25_000) as world:
        found = await violations(world.inference.Generate(generate([5] * 30_000, prompt_logprobs=20)))
        assert "20 for each of 30000 tokens is too much" in found["sampling.prompt_logprobs"]
        call = world.inference.Score(pb.ScoreRequest(tokens=types_pb2.TokenIds(ids=[5] * 30_000), top_logprobs=20))
        assert "may reach 524288" in (await violations(call))["top_logprobs"]


async def test_a_prompt_may_leave_room_for_one_token(world: World) -> None:
    found = await answers(world.inference.Generate(generate([5] * 127, max_tokens=100)))
    assert len(found[0].token_ids) == 1
    assert found[0].endings == [types_pb2.FINISH_REASON_LENGTH]


async def test_a_longer_prompt_is_refused_with_the_numbers(world: World) -> None:
    found = await violations(world.inference.Generate(generate([5] * 128)))
    assert found == {"tokens.ids": "128 tokens do not fit: the context holds 128, so the prompt at most 127"}
    found = await violations(world.inference.Generate(generate("word " * 300)))
    assert "do not fit: the context holds 128" in found["text"]
    found = await violations(world.inference.Generate(generate("word " * 100_000)))
    assert "can not fit into the context of 128 tokens" in found["text"]


async def test_strange_turns_are_refused(world: World) -> None:
    assert await violations(world.inference.Chat(pb.ChatRequest())) == {
        "messages": "empty: at least one message is needed"
    }
    messages = [types_pb2.ChatMessage(role="user", content="a"), types_pb2.ChatMessage(role="robot", content="b")]
    assert await violations(world.inference.Chat(pb.ChatRequest(messages=messages))) == {
        "messages[1].role": "'robot' is not allowed: system, user, assistant, tool are"
    }


async def test_what_can_not_be_scored(world: World) -> None:
    one = types_pb2.TokenIds(ids=[5])
    found = await violations(world.inference.Score(pb.ScoreRequest(tokens=one)))
    assert "at least 2" in found["tokens.ids"]
    many = types_pb2.TokenIds(ids=[5] * 129)
    assert (
        "129 tokens do not fit" in (await violations(world.inference.Score(pb.ScoreRequest(tokens=many))))["tokens.ids"]
    )
    assert set(await violations(world.inference.Score(pb.ScoreRequest(top_logprobs=21, priority=101)))) == {
        "prompt", "top_logprobs", "priority",
    }  # fmt: skip


async def test_all_violations_are_told_at_once(world: World) -> None:
    wrong = types_pb2.SamplingParams(
        max_tokens=0, min_tokens=-1, temperature=float("nan"), top_k=-1, top_p=0.0, min_p=1.5,
        repetition_penalty=0.0, presence_penalty=float("inf"), frequency_penalty=-101, n=65, logprobs=21,
        prompt_logprobs=-1,
    )  # fmt: skip
    found = await violations(world.inference.Generate(pb.GenerateRequest(text="a", sampling=wrong)))
    assert found == {
        "sampling.max_tokens": "0 is not allowed: at least 1 is",
        "sampling.min_tokens": "-1 is not allowed: at least 0 is",
        "sampling.temperature": "nan is not allowed: 0 to 100 is",
        "sampling.top_k": "-1 is not allowed: at least 0 is",
        "sampling.top_p": "0 is not allowed: above 0 to 1 is",
        "sampling.min_p": "1.5 is not allowed: 0 to 1 is",
        "sampling.repetition_penalty": "0 is not allowed: above 0 to 100 is",
        "sampling.presence_penalty": "inf is not allowed: -100 to 100 is",
        "sampling.frequency_penalty": "-101 is not allowed: -100 to 100 is",
        "sampling.n": "65 is not allowed: 1 to 64 is",
        "sampling.logprobs": "21 is not allowed: 0 to 20 is",
        "sampling.prompt_logprobs": "-1 is not allowed: 0 to 20 is",
    }


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"min_tokens": 9}, "sampling.min_tokens", "9 is more than max_tokens 8"),
        ({"stop": ["x"] * 17}, "sampling.stop", "17 strings: at most 16 are allowed"),
        ({"stop": ["x", ""]}, "sampling.stop[1]", "0 characters: 1 to 256 are allowed"),
        ({"stop": ["x" * 257]}, "sampling.stop[0]", "257 characters: 1 to 256 are allowed"),
        ({"stop_token_ids": [1, -5]}, "sampling.stop_token_ids[1]", "token id -5 is not allowed: 0 to 511 is"),
        ({"stop_token_ids": [1] * 1025}, "sampling.stop_token_ids", "1025 entries: at most 1024 are allowed"),
        ({"logit_bias": {512: 1.0}}, "sampling.logit_bias[0]", "token id 512 is not allowed: 0 to 511 is"),
        ({"logit_bias": {5: 1001.0}}, "sampling.logit_bias[5]", "1001 is not allowed: -1000 to 1000 is"),
        ({"logit_bias": {5: float("nan")}}, "sampling.logit_bias[5]", "nan is not allowed: -1000 to 1000 is"),
    ],
)
async def test_each_violation_names_field_value_and_range(
    world: World, fields: dict[str, Any], field: str, message: str
) -> None:
    assert await violations(world.inference.Generate(generate(**fields))) == {field: message}


@pytest.mark.parametrize(
    ("request_", "expected_violations"),
    [
        (pb.GenerateRequest(), [Violation("prompt", "missing: give text or tokens")]),
        (pb.GenerateRequest(text=""), [Violation("text", "empty: at least one character is needed")]),
        (
            pb.GenerateRequest(tokens=types_pb2.TokenIds()),
            [Violation("tokens.ids", "empty: at least one token is needed")],
        ),
        (
            pb.GenerateRequest(tokens=types_pb2.TokenIds(ids=[1, 2, 512])),
            [Violation("tokens.ids[2]", "token id 512 is not allowed: 0 to 511 is")],
        ),
        (
            pb.GenerateRequest(text="a", priority=101),
            [Violation("priority", "101 is not allowed: -100 to 100 is")],
        ),
    ],
)
async def test_prompts_and_priorities_are_checked(
    world: World, request_: pb.GenerateRequest, expected_violations: list[Violation]
) -> None:
    error = await failure(world.inference.Generate(request_))
    assert isinstance(error, InvalidRequest)
    assert list(error.violations) == expected_violations


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"top_p": 1.5}', r"top_p: 1\.5 is not allowed"),
        ('{"temperature": "hot"}', "temperature: 'hot'"),
        ("{", "JSON"),
    ],
)
def test_strange_generation_defaults_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=rf"generation_config\.json.*{message}"):
        GenerationDefaults.from_dir(tmp_path)
