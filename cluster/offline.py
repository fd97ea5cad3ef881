"""The engine in one process, without Ray and without gRPC: texts in, texts out.

>>> engine = OfflineEngine.load(EngineConfig(model_dir="models/sigmoe-demo"))
>>> for answer in engine.generate(["Asthma is"], SamplingParams(max_tokens=20, temperature=0.0)):
...     print(answer.text)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.request_part import split
from cluster.sequence_stream import SequenceStream, TextRules
from cluster.stop_strings import StopAutomaton
from cluster.tokenizer import Tokenizer
from engine.build import build_engine
from engine.config import EngineConfig
from engine.engine import Engine
from model.config import ModelConfig
from scheduler.request import (
    DraftCounts,
    FinishReason,
    Request,
    RequestRefused,
    SamplingParams,
    TokenDelta,
    TokenLogprob,
    Usage,
)

Prompt = str | Sequence[int]

# Requests given to the engine ahead of need: enough that a step never lacks rows, however long the list of prompts.
_WINDOW = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One finished sequence of one prompt."""

    prompt_index: int  # place of the prompt in the input
    sequence_index: int  # 0 .. n - 1
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    error: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    usage: Usage | None = None
    drafts: DraftCounts | None = None


class OfflineEngine:
    """Runs prompts through one engine. Not thread-safe, and one `generate` at a time."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, eos_token_ids: Iterable[int]) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._live: dict[str, _Part] = {}

    @classmethod
    def load(cls, config: EngineConfig) -> OfflineEngine:
        """Load a checkpoint. Raises what `engine.build.build_engine` raises, and CheckpointError for the tokenizer."""
        model_dir = Path(config.model_dir)
        eos_token_ids = ModelConfig.from_dir(model_dir).eos_token_ids
        return cls(build_engine(config), Tokenizer.from_dir(model_dir), eos_token_ids)

    def generate(
        self, prompts: Iterable[Prompt], sampling: SamplingParams, *, num_sequences: int = 1, stop: Sequence[str] = ()
    ) -> Iterator[Answer]:
        """Continue every prompt; answers come as sequences end, with the index of their prompt.

        Prompts are drawn from the iterable as there is room, so it may be endless. A prompt that can not run ends
        with FinishReason.ERROR and disturbs no other. Closing the iterator frees everything under way.
        """
        waiting = enumerate(prompts)
        rules = self._rules(sampling, stop)
        is_more = True
        try:
            while is_more or self._live:
                while is_more and len(self._live) < _WINDOW:
                    index, prompt = next(waiting, (-1, ""))
                    is_more = index >= 0
                    if is_more:
                        yield from self._begin(index, prompt, sampling, num_sequences, rules)
                for delta in self._engine.step() if self._live else ():
                    yield from self._take(delta)
        finally:
            self._abandon()

    def _rules(self, sampling: SamplingParams, stop: Sequence[str]) -> TextRules:
        ends = frozenset() if sampling.ignore_eos else self._eos_token_ids
        return TextRules(
            pieces=self._tokenizer.shown,
            hidden_ids=ends | frozenset(sampling.stop_token_ids),
            stops=StopAutomaton(stop) if stop else None,
            min_tokens=sampling.min_tokens,
        )

    def _begin(
        self, index: int, prompt: Prompt, sampling: SamplingParams, num_sequences: int, rules: TextRules
    ) -> Iterator[Answer]:
        """Give a prompt to the engine; yields its endings if it is refused."""
        ids = tuple(self._tokenizer.encode_now(prompt) if isinstance(prompt, str) else prompt)
        whole = Request(request_id=str(index), prompt=ids, sampling=sampling, num_sequences=num_sequences)
        for request in split(whole, one_by_one=rules.stops is not None):
            part = _Part(index, request, rules)
            try:
                self._engine.add(request)
            except RequestRefused as refusal:
                for sequence in part.sequences.values():
                    sequence.finish(FinishReason.ERROR, str(refusal))
                    yield part.answer(sequence)
                continue
            self._live[request.request_id] = part

    def _take(self, delta: TokenDelta) -> Iterator[Answer]:
        part = self._live.get(delta.request_id)
        if part is None:
            return
        sequence = part.sequences[delta.sequence_index]
        sequence.push(delta)
        if sequence.is_stopped and not sequence.is_finished:
            self._engine.abort(delta.request_id)
        if sequence.is_finished:
            yield part.answer(sequence)
            if all(other.is_finished for other in part.sequences.values()):
                del self._live[delta.request_id]

    def _abandon(self) -> None:
        for request_id in self._live:
            self._engine.abort(request_id)
        self._live.clear()
        while self._engine.has_work:
            self._engine.step()


class _Part:
    """The sequences of one request under way."""

    def __init__(self, prompt_index: int, request: Request, rules: TextRules) -> None:
        first = request.first_sequence_index
        self.sequences = {
            index: SequenceStream(index, len(request.prompt), rules)
            for index in range(first, first + request.num_sequences)
        }
        self._prompt_index = prompt_index

    def answer(self, sequence: SequenceStream) -> Answer:
        """The end of a sequence."""
        chunk = sequence.take()
        assert chunk.finish_reason is not None, f"sequence {sequence.index} has not ended"
        return Answer(
            prompt_index=self._prompt_index,
            sequence_index=sequence.index,
            text=chunk.text,
            token_ids=chunk.token_ids,
            finish_reason=chunk.finish_reason,
            error=chunk.error,
            logprobs=chunk.logprobs,
            prompt_logprobs=chunk.prompt_logprobs,
            usage=chunk.usage,
            drafts=chunk.drafts,
        )
