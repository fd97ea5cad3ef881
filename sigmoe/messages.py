"""Requests to wire messages and wire messages to results. Pure functions, shared by both clients."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import get_args

from sigmoe import results
from sigmoe.sampling import Sampling, draft_name
from sigmoe.v1 import admin_service_pb2, inference_service_pb2, types_pb2

Prompt = str | Sequence[int]
Message = Mapping[str, str]  # {"role": ..., "content": ...}
Response = inference_service_pb2.GenerateResponse | inference_service_pb2.ChatResponse

_REASONS: dict[int, results.FinishReason] = dict(enumerate(get_args(results.FinishReason), start=1))
_RANK_STATES = ("unknown", "starting", "serving", "lost")
_DRAFTING_STATES = ("unknown", "off", "fixed", "learning", "drafting", "resting", "broken")
_REPLICA_STATES = ("unknown", "starting", "serving", "recovering", "draining")


def generate_request(
    prompt: Prompt, sampling: Sampling, *, priority: int = 0, return_token_ids: bool = False, whole: bool = False
) -> inference_service_pb2.GenerateRequest:
    """A Generate call for a text or a list of token ids."""
    request = inference_service_pb2.GenerateRequest(
        sampling=sampling.to_proto(), priority=priority, return_token_ids=return_token_ids, whole=whole
    )
    _set_prompt(request, prompt)
    return request


def chat_request(
    messages: Iterable[Message],
    sampling: Sampling,
    *,
    priority: int = 0,
    return_token_ids: bool = False,
    whole: bool = False,
) -> inference_service_pb2.ChatRequest:
    """A Chat call for `[{"role": "user", "content": "..."}]`."""
    return inference_service_pb2.ChatRequest(
        messages=chat_messages(messages),
        sampling=sampling.to_proto(),
        priority=priority,
        return_token_ids=return_token_ids,
        whole=whole,
    )


def score_request(prompt: Prompt, *, top_logprobs: int = 0, priority: int = 0) -> inference_service_pb2.ScoreRequest:
    """A Score call for a text or a list of token ids."""
    request = inference_service_pb2.ScoreRequest(top_logprobs=top_logprobs, priority=priority)
    _set_prompt(request, prompt)
    return request


def tokenize_request(text: Prompt | Iterable[Message]) -> inference_service_pb2.TokenizeRequest:
    """A Tokenize call for a text or for a conversation."""
    if isinstance(text, str):
        return inference_service_pb2.TokenizeRequest(text=text)
    turns = inference_service_pb2.ChatMessages(messages=chat_messages(text))  # type: ignore[arg-type]
    return inference_service_pb2.TokenizeRequest(messages=turns)


def chat_messages(messages: Iterable[Message]) -> list[types_pb2.ChatMessage]:
    """Wire form of the turns. Raises ValueError naming the turn and the key that is missing or strange."""
    turns = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            raise ValueError(f'messages[{index}]: expected {{"role": ..., "content": ...}}, got {message!r}')
        turns.append(types_pb2.ChatMessage(role=message["role"], content=message["content"]))
    return turns


def chunk(response: Response) -> results.Chunk:
    """One response of a stream."""
    return results.Chunk(
        request_id=response.request_id,
        index=response.index,
        text=response.text,
        token_ids=tuple(response.token_ids),
        logprobs=_logprobs(response.logprobs),
        prompt_logprobs=_logprobs(response.prompt_logprobs),
        finish_reason=_REASONS.get(response.finish_reason),
        error=response.error,
        usage=_usage(response.usage) if response.HasField("usage") else None,
    )


def completion(chunks: Iterable[results.Chunk]) -> results.Completion:
    """Join the chunks of a finished stream, by sequence."""
    parts: dict[int, list[results.Chunk]] = {}
    for part in chunks:
        parts.setdefault(part.index, []).append(part)
    if not parts:
        raise ValueError("the stream ended without a response")
    prompt_logprobs = tuple(entry for part in parts.get(0, []) for entry in part.prompt_logprobs)
    return results.Completion(
        request_id=next(iter(parts.values()))[0].request_id,
        choices=tuple(_choice(parts[index]) for index in sorted(parts)),
        prompt_logprobs=prompt_logprobs,
    )


def score(response: inference_service_pb2.ScoreResponse) -> results.Score:
    """The answer of Score."""
    return results.Score(
        token_ids=tuple(response.token_ids),
        logprobs=_logprobs(response.logprobs),
        total_logprob=response.total_logprob,
    )


def tokens(response: inference_service_pb2.TokenizeResponse) -> results.Tokens:
    """The answer of Tokenize."""
    return results.Tokens(ids=tuple(response.ids), pieces=tuple(response.pieces))


def model(response: inference_service_pb2.GetModelResponse) -> results.Model:
    """The answer of GetModel."""
    return results.Model(
        name=response.name,
        architecture=response.architecture,
        vocab_size=response.vocab_size,
        max_context=response.max_context,
        num_layers=response.num_layers,
        num_experts=response.num_experts,
        num_experts_per_token=response.num_experts_per_token,
        dtype=response.dtype,
        eos_token_ids=tuple(response.eos_token_ids),
        server_version=response.server_version,
        uptime_s=response.uptime.ToTimedelta().total_seconds(),
        draft_model=draft_name(response.draft_model),
    )


def cluster(response: admin_service_pb2.GetClusterResponse) -> results.Cluster:
    """The answer of GetCluster."""
    gateway = response.gateway
    return results.Cluster(
        model=response.model,
        epoch=response.epoch,
        gateway=results.GatewayState(
            active_requests=gateway.active_requests,
            max_requests=gateway.max_requests,
            ended_requests=dict(gateway.ended_requests),
            resumed_requests=gateway.resumed_requests,
            streamed_tokens=gateway.streamed_tokens,
        ),
        ranks=tuple(_rank(rank) for rank in response.ranks),
        server_version=response.server_version,
        uptime_s=response.uptime.ToTimedelta().total_seconds(),
        configuration=json.loads(response.configuration) if response.configuration else {},
        fleet=_fleet(response.fleet),
    )


def fleet_event(event: admin_service_pb2.FleetEvent) -> results.FleetEvent:
    """One of ListEvents."""
    return results.FleetEvent(
        id=event.id,
        time=event.time.ToDatetime(UTC),
        kind=event.kind,
        replica=event.replica if event.HasField("replica") else None,
        reason=event.reason,
        numbers=dict(event.numbers),
    )


def _set_prompt(
    request: inference_service_pb2.GenerateRequest | inference_service_pb2.ScoreRequest, prompt: Prompt
) -> None:
    if isinstance(prompt, str):
        request.text = prompt
        return
    try:
        request.tokens.ids.extend(prompt)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"prompt: expected a text or a list of token ids ({error})") from error
    request.tokens.SetInParent()


def _choice(parts: list[results.Chunk]) -> results.Choice:
    last = parts[-1]
    return results.Choice(
        index=last.index,
        text="".join(part.text for part in parts),
        finish_reason=last.finish_reason or "error",
        token_ids=tuple(token for part in parts for token in part.token_ids),
        logprobs=tuple(entry for part in parts for entry in part.logprobs),
        error=last.error,
        usage=last.usage,
    )


def _candidate(candidate: types_pb2.Candidate) -> results.Candidate:
    return results.Candidate(token_id=candidate.token_id, text=candidate.text, logprob=candidate.logprob)


def _logprobs(entries: Iterable[types_pb2.TokenLogprob]) -> tuple[results.TokenLogprob, ...]:
    return tuple(
        results.TokenLogprob(token=_candidate(entry.token), top=tuple(_candidate(c) for c in entry.top))
        for entry in entries
    )


def _usage(usage: types_pb2.Usage) -> results.Usage:
    return results.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.output_tokens,
        preemptions=usage.preemptions,
        queue_s=usage.queue_time.ToTimedelta().total_seconds(),
        prefill_s=usage.prefill_time.ToTimedelta().total_seconds(),
        decode_s=usage.decode_time.ToTimedelta().total_seconds(),
        drafts=_drafts(usage.drafts) if usage.HasField("drafts") else None,
        draft_method=draft_name(usage.draft_method),
        draft_reason=usage.draft_reason,
        forward_s=usage.forward_time.ToTimedelta().total_seconds(),
        sample_s=usage.sample_time.ToTimedelta().total_seconds(),
        draft_s=usage.draft_time.ToTimedelta().total_seconds(),
        extend_s=usage.extend_time.ToTimedelta().total_seconds(),
    )


def _drafts(counts: types_pb2.DraftCounts) -> results.Drafts:
    return results.Drafts(
        rounds=counts.rounds,
        committed_tokens=counts.committed_tokens,
        drafted=tuple(counts.drafted),
        accepted=tuple(counts.accepted),
        rounds_by_length=tuple(counts.rounds_by_length),
    )


def _drafting(status: admin_service_pb2.DraftingStatus) -> results.Drafting:
    is_known = status.state < len(_DRAFTING_STATES)
    return results.Drafting(
        method=draft_name(status.method),
        state=_DRAFTING_STATES[status.state] if is_known else "unknown",  # type: ignore[arg-type]
        length=status.length,
        reason=status.reason,
        drafts=_drafts(status.drafts),
        cost_error=status.cost_error,
    )


def _fleet(fleet: admin_service_pb2.FleetStatus) -> results.Fleet:
    load = fleet.load
    return results.Fleet(
        replicas=tuple(
            results.ReplicaState(
                replica=one.replica,
                state=_REPLICA_STATES[one.state] if one.state < len(_REPLICA_STATES) else "unknown",  # type: ignore[arg-type]
            )
            for one in fleet.replicas
        ),
        wanted=fleet.wanted,
        min_replicas=fleet.min_replicas,
        max_replicas=fleet.max_replicas,
        reason=fleet.reason,
        load=results.FleetLoad(
            serving_replicas=load.serving_replicas,
            sequences=load.sequences,
            waiting_sequences=load.waiting_sequences,
            queue_s=load.queue_time.ToTimedelta().total_seconds(),
            kv_use=load.kv_use,
            attainment=load.attainment if load.HasField("attainment") else None,
            background_sequences=load.background_sequences,
        )
        if fleet.HasField("load")
        else None,
    )


def _rank(rank: admin_service_pb2.RankStatus) -> results.RankState:
    return results.RankState(
        rank=rank.rank,
        state=_RANK_STATES[rank.state] if rank.state < len(_RANK_STATES) else "unknown",  # type: ignore[arg-type]
        device=rank.device,
        host=rank.host,
        pid=rank.pid,
        experts=tuple(rank.experts),
        waiting_sequences=rank.waiting_sequences,
        running_sequences=rank.running_sequences,
        kv_blocks=rank.kv_blocks,
        kv_blocks_free=rank.kv_blocks_free,
        kv_blocks_cached=rank.kv_blocks_cached,
        kv_block_size=rank.kv_block_size,
        steps=rank.steps,
        generated_tokens=rank.generated_tokens,
        preemptions=rank.preemptions,
        prefix_query_tokens=rank.prefix_query_tokens,
        prefix_hit_tokens=rank.prefix_hit_tokens,
        weight_bytes=rank.weight_bytes,
        kv_bytes=rank.kv_bytes,
        expert_tokens=tuple(rank.expert_tokens),
        kernels=rank.kernels,
        drafts=_drafts(rank.drafts),
        draft_length=rank.draft_length,
        draft_reason=rank.draft_reason,
        forward_s=rank.forward_time.ToTimedelta().total_seconds(),
        sample_s=rank.sample_time.ToTimedelta().total_seconds(),
        draft_s=rank.draft_time.ToTimedelta().total_seconds(),
        extend_s=rank.extend_time.ToTimedelta().total_seconds(),
        draft_cost_error=rank.draft_cost_error,
        drafting=tuple(map(_drafting, rank.drafting)),
        replica=rank.replica,
    )
