"""sigmoe.v1.InferenceService: calls in, streams and answers out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.calls import Calls
from cluster.latencies import CallLatency, Latencies
from cluster.request_builder import Prepared
from cluster.responses import Response, logprob_messages, stream_responses, usage_message
from cluster.sampling_rules import DEFAULT_MAX_TOKENS, DRAFT_MODELS
from cluster.sequence_stream import Chunk
from cluster.serving import Serving
from cluster.stream import RequestStream
from scheduler.request import FinishReason
from sigmoe import __version__
from sigmoe.errors import Cancelled, DeadlineExceeded, ServerFailure
from sigmoe.v1 import inference_service_pb2 as inference
from sigmoe.v1 import inference_service_pb2_grpc, types_pb2


class InferenceService(inference_service_pb2_grpc.InferenceServiceServicer):
    """`serving` gives what to answer from, and raises Unavailable while there is nothing."""

    def __init__(self, calls: Calls, serving: Callable[[], Serving], latencies: Latencies) -> None:
        self._calls = calls
        self._serving = serving
        self._latencies = latencies

    async def Generate(self, call: inference.GenerateRequest, context: Any) -> None:
        """Continue a text or token ids."""

        async def work(request_id: str) -> None:
            latency = CallLatency(self._latencies, is_whole=call.whole, is_background=call.priority < 0)
            prepared = await self._serving().builder.generate(call, request_id)
            await self._stream(prepared, inference.GenerateResponse, context, latency)

        await self._calls.run(context, work, is_background=call.priority < 0)

    async def Chat(self, call: inference.ChatRequest, context: Any) -> None:
        """Answer a conversation."""

        async def work(request_id: str) -> None:
            latency = CallLatency(self._latencies, is_whole=call.whole, is_background=call.priority < 0)
            prepared = await self._serving().builder.chat(call, request_id)
            await self._stream(prepared, inference.ChatResponse, context, latency)

        await self._calls.run(context, work, is_background=call.priority < 0)

    async def Score(self, call: inference.ScoreRequest, context: Any) -> inference.ScoreResponse:
        """Log-probabilities of a text."""

        async def work(request_id: str) -> inference.ScoreResponse:
            prepared = await self._serving().builder.score(call, request_id)
            return await self._score(prepared, context)

        return await self._calls.run(context, work, is_background=call.priority < 0)

    async def Tokenize(self, call: inference.TokenizeRequest, context: Any) -> inference.TokenizeResponse:
        """Text or messages to token ids."""

        async def work(_: str) -> inference.TokenizeResponse:
            serving = self._serving()
            ids = await serving.builder.tokenize(call)
            return inference.TokenizeResponse(ids=ids, pieces=await serving.model.tokenizer.piece_texts(ids))

        return await self._calls.run(context, work)

    async def Detokenize(self, call: inference.DetokenizeRequest, context: Any) -> inference.DetokenizeResponse:
        """Token ids to text."""

        async def work(_: str) -> inference.DetokenizeResponse:
            return inference.DetokenizeResponse(text=self._serving().builder.detokenize(call))

        return await self._calls.run(context, work)

    async def GetModel(self, call: inference.GetModelRequest, context: Any) -> inference.GetModelResponse:
        """Facts about the model."""

        async def work() -> inference.GetModelResponse:
            return _model_facts(self._serving())

        return await self._calls.look(context, work)

    async def _stream(self, prepared: Prepared, kind: type[Response], context: Any, latency: CallLatency) -> None:
        """Write what the ranks make of a request until every sequence has ended."""
        serving = self._serving()
        text_of, request_id = serving.model.tokenizer.piece, prepared.request.request_id
        reasons: set[FinishReason | None] = set()
        stream = _open_stream(prepared)
        try:
            await serving.switchboard.open(prepared.request, stream, serving.deadline(context))
            while chunks := await stream.take():
                for chunk in chunks:
                    latency.see(chunk)
                    for response in stream_responses(
                        kind, request_id, chunk, text_of, with_token_ids=prepared.return_token_ids
                    ):
                        await context.write(response)
                    reasons.add(chunk.finish_reason)
        finally:
            serving.switchboard.close(stream)
            latency.end()
        _raise_for(reasons)

    async def _score(self, prepared: Prepared, context: Any) -> inference.ScoreResponse:
        serving = self._serving()
        chunks: list[Chunk] = []
        stream = _open_stream(prepared)
        try:
            await serving.switchboard.open(prepared.request, stream, serving.deadline(context))
            while taken := await stream.take():
                chunks.extend(taken)
        finally:
            serving.switchboard.close(stream)
        _raise_for({chunk.finish_reason for chunk in chunks})
        last = chunks[-1]
        if last.finish_reason is FinishReason.ERROR:
            raise ServerFailure(f"request {prepared.request.request_id}: {last.error}")
        entries = [entry for chunk in chunks for entry in chunk.prompt_logprobs]
        return inference.ScoreResponse(
            token_ids=prepared.request.prompt,
            logprobs=logprob_messages(entries, serving.model.tokenizer.piece),
            total_logprob=sum(entry.logprob for entry in entries),
            usage=None if last.usage is None else usage_message(last.usage, last.drafts),
        )


def _open_stream(prepared: Prepared) -> RequestStream:
    request = prepared.request
    return RequestStream(request.num_sequences, len(request.prompt), prepared.rules, is_whole=prepared.is_whole)


def _raise_for(reasons: set[FinishReason | None]) -> None:
    """Endings that are the call's, not a sequence's, become its status."""
    if FinishReason.DEADLINE in reasons:
        raise DeadlineExceeded("the deadline passed before the answer was complete")
    if FinishReason.CANCELLED in reasons:
        raise Cancelled("the request was cancelled on the server")


def _model_facts(serving: Serving) -> inference.GetModelResponse:
    model, config = serving.model, serving.model.config
    defaults = model.defaults
    return inference.GetModelResponse(
        name=model.name,
        architecture="BailingMoeV2ForCausalLM",
        vocab_size=config.vocab_size,
        max_context=serving.max_context,
        num_layers=config.num_hidden_layers,
        num_experts=config.num_experts,
        num_experts_per_token=config.num_experts_per_tok,
        dtype=serving.dtype or config.torch_dtype,
        eos_token_ids=config.eos_token_ids,
        default_sampling=types_pb2.SamplingParams(
            max_tokens=DEFAULT_MAX_TOKENS,
            temperature=defaults.temperature,
            top_k=defaults.top_k,
            top_p=defaults.top_p,
            min_p=defaults.min_p,
            repetition_penalty=defaults.repetition_penalty,
        ),
        server_version=__version__,
        uptime=serving.uptime(),
        draft_model=DRAFT_MODELS[serving.executor.info().draft_model],
    )
