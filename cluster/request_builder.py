"""Calls to requests: everything a client sent is checked here, once, and all faults are told together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.chat_template import ROLES
from cluster.sampling_rules import Violations, check_ids, check_sampling, draft_method, sampling_params
from cluster.sequence_stream import TextRules
from cluster.served_model import ServedModel
from cluster.stop_strings import StopAutomaton
from scheduler.request import DraftMethod, Request, SamplingParams
from sigmoe.v1 import inference_service_pb2 as inference
from sigmoe.v1 import types_pb2

_MAX_PRIORITY = 100
MAX_PROMPT_CANDIDATES = 2**19  # log-probabilities of a prompt's tokens, the likeliest ones included
_MAX_TOP = 20
_MIN_LOOK_UP = 2**18  # bytes, or ids, that Tokenize and Detokenize take however small the context is

Prompted = inference.GenerateRequest | inference.ScoreRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A checked call: what goes to a rank, and how its tokens become text."""

    request: Request
    rules: TextRules
    return_token_ids: bool = False
    is_whole: bool = False  # the client wants nothing before the end


class RequestBuilder:
    """Knows what the served model can take. Raises InvalidRequest naming every field that is wrong.

    `max_context`: prompt and output together, as the ranks hold it; `draft_model`: what they have loaded.
    """

    def __init__(
        self,
        model: ServedModel,
        max_context: int,
        draw_seed: Callable[[], int],
        draft_model: DraftMethod = DraftMethod.NONE,
    ) -> None:
        self._model = model
        self._max_context = max_context
        self._draft_model = draft_model
        self._draw_seed = draw_seed
        self._vocab_size = model.config.vocab_size
        # A text of more bytes has more tokens than fit, however it splits: no need to look.
        self._max_text = max_context * model.tokenizer.longest_piece

    async def generate(self, call: inference.GenerateRequest, request_id: str) -> Prepared:
        """The request of a Generate call."""
        violations = self._common_faults(call.sampling, call.priority)
        field = self._check_prompt(call, violations)
        violations.raise_if_any()
        prompt = await self._encode(call.text, field) if field == "text" else list(call.tokens.ids)
        return self._prepare(call, request_id, prompt, field)

    async def chat(self, call: inference.ChatRequest, request_id: str) -> Prepared:
        """The request of a Chat call."""
        violations = self._common_faults(call.sampling, call.priority)
        _check_messages(call.messages, "messages", violations)
        violations.raise_if_any()
        prompt = await self._encode(self._render(call.messages), "messages")
        return self._prepare(call, request_id, prompt, "messages")

    async def score(self, call: inference.ScoreRequest, request_id: str) -> Prepared:
        """The request of a Score call: nothing is generated."""
        violations = Violations()
        _check_priority(call.priority, violations)
        top = call.top_logprobs
        violations.demand(0 <= top <= _MAX_TOP, "top_logprobs", f"{top} is not allowed: 0 to {_MAX_TOP} is")
        field = self._check_prompt(call, violations)
        violations.raise_if_any()
        prompt = await self._encode(call.text, field) if field == "text" else list(call.tokens.ids)
        violations.demand(
            len(prompt) >= 2, field, f"{len(prompt)} tokens: at least 2 are needed, the first has no score"
        )
        self._check_length(len(prompt), self._max_context, field, violations)
        _check_candidates(len(prompt), top, "top_logprobs", violations)
        violations.raise_if_any()
        sampling = SamplingParams(max_tokens=0, num_prompt_logprobs=top)
        request = Request(request_id=request_id, prompt=tuple(prompt), sampling=sampling, priority=call.priority)
        return Prepared(request=request, rules=TextRules(pieces={}))

    async def tokenize(self, call: inference.TokenizeRequest) -> list[int]:
        """The token ids of a Tokenize call; none for an empty text."""
        violations = Violations()
        given = call.WhichOneof("input")
        if given is None:
            violations.add("input", "missing: give text or messages")
        if given == "messages":
            _check_messages(call.messages.messages, "messages.messages", violations)
        violations.raise_if_any()
        text = self._render(call.messages.messages) if given == "messages" else call.text
        num_bytes, most = len(text.encode()), max(_MIN_LOOK_UP, self._max_text)
        violations.demand(num_bytes <= most, str(given), f"{num_bytes} bytes of text: at most {most} are allowed")
        violations.raise_if_any()
        return await self._model.tokenizer.encode(text)

    def detokenize(self, call: inference.DetokenizeRequest) -> str:
        """The text of a Detokenize call."""
        violations = Violations()
        num_ids, most = len(call.ids), max(_MIN_LOOK_UP, self._max_context)
        violations.demand(num_ids <= most, "ids", f"{num_ids} ids: at most {most} are allowed")
        check_ids(call.ids[: most + 1], self._vocab_size, "ids", violations)
        violations.raise_if_any()
        return self._model.tokenizer.decode(call.ids, skip_special_tokens=call.skip_special_tokens)

    def _common_faults(self, sampling: types_pb2.SamplingParams, priority: int) -> Violations:
        violations = Violations()
        check_sampling(sampling, self._vocab_size, violations)
        draft_method(sampling, self._draft_model, violations)
        _check_priority(priority, violations)
        return violations

    def _check_prompt(self, call: Prompted, violations: Violations) -> str:
        """Returns the field that holds the prompt."""
        given = call.WhichOneof("prompt")
        if given is None:
            violations.add("prompt", "missing: give text or tokens")
            return "prompt"
        if given == "text":
            violations.demand(bool(call.text), "text", "empty: at least one character is needed")
            return "text"
        violations.demand(len(call.tokens.ids) > 0, "tokens.ids", "empty: at least one token is needed")
        if len(call.tokens.ids) <= self._max_context:
            check_ids(call.tokens.ids, self._vocab_size, "tokens.ids", violations)
        return "tokens.ids"

    async def _encode(self, text: str, field: str) -> list[int]:
        violations = Violations()
        num_bytes = len(text.encode())
        violations.demand(
            num_bytes <= self._max_text,
            field,
            f"{num_bytes} bytes of text can not fit into the context of {self._max_context} tokens",
        )
        violations.raise_if_any()
        return await self._model.tokenizer.encode(text)

    def _render(self, messages: Iterable[types_pb2.ChatMessage]) -> str:
        return self._model.template.render([{"role": m.role, "content": m.content} for m in messages])

    def _prepare(
        self, call: inference.GenerateRequest | inference.ChatRequest, request_id: str, prompt: list[int], field: str
    ) -> Prepared:
        given, violations = call.sampling, Violations()
        violations.demand(bool(prompt), field, "no tokens: the prompt is empty once tokenized")
        self._check_length(len(prompt), self._max_context - 1, field, violations)
        if given.HasField("prompt_logprobs"):
            _check_candidates(len(prompt), given.prompt_logprobs, "sampling.prompt_logprobs", violations)
        violations.raise_if_any()
        room = self._max_context - len(prompt)
        sampling = sampling_params(given, self._model.defaults, room, self._draw_seed)
        request = Request(
            request_id=request_id,
            prompt=tuple(prompt),
            sampling=sampling,
            num_sequences=given.n if given.HasField("n") else 1,
            priority=call.priority,
            draft_method=draft_method(given, self._draft_model, violations),
            max_drafts=given.max_drafts if given.HasField("max_drafts") else None,
        )
        rules = self._text_rules(sampling, tuple(given.stop))
        return Prepared(request=request, rules=rules, return_token_ids=call.return_token_ids, is_whole=call.whole)

    def _text_rules(self, sampling: SamplingParams, stops: tuple[str, ...]) -> TextRules:
        ends = () if sampling.ignore_eos else self._model.config.eos_token_ids
        return TextRules(
            pieces=self._model.tokenizer.shown,
            hidden_ids=frozenset((*ends, *sampling.stop_token_ids)),
            stops=StopAutomaton(stops) if stops else None,
            min_tokens=sampling.min_tokens,
        )

    def _check_length(self, num_tokens: int, most: int, field: str, violations: Violations) -> None:
        violations.demand(
            num_tokens <= most,
            field,
            f"{num_tokens} tokens do not fit: the context holds {self._max_context}, so the prompt at most {most}",
        )


def _check_messages(messages: Iterable[types_pb2.ChatMessage], field: str, violations: Violations) -> None:
    is_empty = True
    for position, message in enumerate(messages):
        is_empty = False
        if message.role not in ROLES:
            violations.add(f"{field}[{position}].role", f"{message.role!r} is not allowed: {', '.join(ROLES)} are")
    violations.demand(not is_empty, field, "empty: at least one message is needed")


def _check_priority(priority: int, violations: Violations) -> None:
    violations.demand(
        abs(priority) <= _MAX_PRIORITY,
        "priority",
        f"{priority} is not allowed: {-_MAX_PRIORITY} to {_MAX_PRIORITY} is",
    )


def _check_candidates(num_tokens: int, top: int, field: str, violations: Violations) -> None:
    num_candidates = num_tokens * (1 + top)
    violations.demand(
        num_candidates <= MAX_PROMPT_CANDIDATES,
        field,
        f"{top} for each of {num_tokens} tokens is too much: (1 + {field.split('.')[-1]}) * tokens may reach"
        f" {MAX_PROMPT_CANDIDATES}",
    )
