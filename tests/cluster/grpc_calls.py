"""What clients do, in few words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest

from sigmoe.errors import InvalidRequest, SigmoeError
from sigmoe.status import error_of
from sigmoe.v1 import inference_service_pb2 as pb
from sigmoe.v1 import types_pb2


def sampling(**fields: Any) -> types_pb2.SamplingParams:
    """Greedy, without an early end, unless said otherwise."""
    return types_pb2.SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 8, **fields})


def generate(prompt: str | list[int] = "What is asthma?", **fields: Any) -> pb.GenerateRequest:
    request = pb.GenerateRequest(sampling=sampling(**fields), return_token_ids=True)
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.tokens.ids.extend(prompt)
    return request


@dataclass
class Answer:
    """One sequence of a finished stream."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[types_pb2.TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[types_pb2.TokenLogprob] = field(default_factory=list)
    endings: list[int] = field(default_factory=list)
    usage: types_pb2.Usage | None = None
    error: str = ""


async def answers(call: Any) -> dict[int, Answer]:
    """Read a stream to its end; by index. Nothing may follow a sequence's ending."""
    found: dict[int, Answer] = {}
    async for response in call:
        answer = found.setdefault(response.index, Answer())
        assert not answer.endings, "a response after the last"
        answer.text += response.text
        answer.token_ids += response.token_ids
        answer.logprobs += response.logprobs
        answer.prompt_logprobs += response.prompt_logprobs
        if response.finish_reason:
            answer.endings.append(response.finish_reason)
            answer.usage, answer.error = response.usage, response.error
    return found


async def failure(call: Any) -> SigmoeError:
    """The typed error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    return error_of(caught.value)


async def violations(call: Any) -> dict[str, str]:
    """The field violations that a call is refused with."""
    error = await failure(call)
    assert isinstance(error, InvalidRequest)
    return {violation.field: violation.message for violation in error.violations}
