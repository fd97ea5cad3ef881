"""The client's side of the sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from sigmoe.v1 import types_pb2

_PREFIX = "DRAFT_METHOD_"


def draft_name(value: int) -> str:
    """A draft method of the wire as clients write it; "unspecified" for one that this client does not know."""
    known = types_pb2.DraftMethod.values()
    return types_pb2.DraftMethod.Name(value if value in known else 0).removeprefix(_PREFIX).lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen; None leaves a choice to the server. Ranges: `sigmoe/v1/types.proto`.

    The server checks the values, so that every client gets the same answer to a wrong one.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    n: int | None = None
    stop_token_ids: Sequence[int] = ()
    stop: Sequence[str] = ()
    ignore_eos: bool | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    draft: str | None = None  # "off", "eagle3", "mtp", "ngram"
    max_drafts: int | None = None

    def to_proto(self) -> types_pb2.SamplingParams:
        """The wire form; only what is set is sent. Raises ValueError where a value does not fit its wire type."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if self.draft is not None:
            given["draft"] = _PREFIX + self.draft.upper()
        message = types_pb2.SamplingParams()
        for name, value in given.items():
            try:
                message.MergeFrom(types_pb2.SamplingParams(**{name: value}))
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"sampling.{name}: {value!r} is not a valid value ({error})") from error
        return message
