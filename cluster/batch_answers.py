"""What a batch writes: one line for each input line, in OpenAI's format."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

from cluster.batch_format import BatchRequest, LineFault
from sigmoe.errors import DeadlineExceeded, InvalidRequest, SigmoeError
from sigmoe.results import Candidate, Choice, Completion, TokenLogprob

_SAMPLING = "sampling."


def answer_line(index: int, request: BatchRequest, completion: Completion, model: str) -> str:
    """The line of an answer."""
    usages = [choice.usage for choice in completion.choices if choice.usage is not None]
    num_prompt = usages[0].prompt_tokens if usages else 0
    num_output = sum(usage.output_tokens for usage in usages)
    is_chat = request.is_chat
    body = {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{completion.request_id}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [_chat_choice(choice) if is_chat else _text_choice(choice) for choice in completion.choices],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
            "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens if usages else 0},
        },
    }
    response = {"status_code": 200, "request_id": completion.request_id, "body": body}
    return _line(index, request.custom_id, response, None)


def error_line(index: int, custom_id: str | None, error: dict[str, Any]) -> str:
    """The line of a request that has no answer."""
    return _line(index, custom_id, None, error)


def fault_of(error: LineFault | SigmoeError) -> dict[str, Any]:
    """What an error line says: a code for programs, a message for people, the fields at fault."""
    if isinstance(error, LineFault):
        return {"code": error.code, "message": str(error), "param": error.field or None}
    if isinstance(error, InvalidRequest):
        fields = [violation.field.removeprefix(_SAMPLING) for violation in error.violations]
        return {
            "code": "invalid_request",
            "message": str(error).replace(_SAMPLING, ""),
            "param": ", ".join(fields) or None,
        }
    code = "deadline_exceeded" if isinstance(error, DeadlineExceeded) else "server_error"
    return {"code": code, "message": str(error), "param": None}


def _line(index: int, custom_id: str | None, response: dict[str, Any] | None, error: dict[str, Any] | None) -> str:
    """The id depends on place and custom_id alone, so a batch that is run again gives the same ones."""
    digest = hashlib.blake2b(f"{index}/{custom_id}".encode(errors="surrogatepass"), digest_size=8).hexdigest()
    line = {"id": f"batch_req_{digest}", "custom_id": custom_id, "response": response, "error": error}
    # JSON's own escapes keep a line a line and UTF-8 whatever a text holds.
    return json.dumps(line, ensure_ascii=True)


def _chat_choice(choice: Choice) -> dict[str, Any]:
    logprobs = None
    if choice.logprobs:
        logprobs = {"content": [_chat_logprob(entry) for entry in choice.logprobs], "refusal": None}
    return {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": choice.finish_reason,
    }


def _text_choice(choice: Choice) -> dict[str, Any]:
    return {
        "index": choice.index,
        "text": choice.text,
        "logprobs": _text_logprobs(choice.logprobs) if choice.logprobs else None,
        "finish_reason": choice.finish_reason,
    }


def _chat_logprob(entry: TokenLogprob) -> dict[str, Any]:
    return _candidate(entry.token) | {"top_logprobs": [_candidate(candidate) for candidate in entry.top]}


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {"token": candidate.text, "logprob": candidate.logprob, "bytes": list(candidate.text.encode())}


def _text_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {
        "tokens": [entry.token.text for entry in entries],
        "token_logprobs": [entry.token.logprob for entry in entries],
        "top_logprobs": [{candidate.text: candidate.logprob for candidate in entry.top} for entry in entries],
    }
