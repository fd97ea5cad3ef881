"""The metrics that Prometheus reads, all named here but for the histograms of `latencies`.

They are made of the same snapshot that `sigmoe status` shows, field by field; docs/metrics.md lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf import duration_pb2
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from sigmoe.sampling import draft_name
from sigmoe.v1 import admin_service_pb2 as admin

_RANK = ("replica", "rank")
_METHOD = (*_RANK, "method")
_OfMethod = tuple[tuple[str, str, str], admin.DraftingStatus]  # with its labels

_RANK_GAUGES = {
    "sequences_waiting": ("waiting_sequences", "Sequences waiting for a place."),
    "sequences_running": ("running_sequences", "Sequences in the running batch."),
    "kv_blocks": ("kv_blocks", "Blocks of the KV cache."),
    "kv_blocks_free": ("kv_blocks_free", "Blocks that are free or hold only cached prefixes."),
    "kv_blocks_cached": ("kv_blocks_cached", "Blocks whose contents the prefix cache can serve again."),
    "weight_bytes": ("weight_bytes", "Bytes of weights."),
    "kv_bytes": ("kv_bytes", "Bytes of the KV cache."),
}
_RANK_COUNTERS = {
    "steps": ("steps", "Steps."),
    "generated_tokens": ("generated_tokens", "Tokens generated."),
    "preemptions": ("preemptions", "Preemptions."),
    "prefix_query_tokens": ("prefix_query_tokens", "Prompt tokens looked up in the prefix cache."),
    "prefix_hit_tokens": ("prefix_hit_tokens", "Prompt tokens found in the prefix cache."),
}


def families(cluster: admin.GetClusterResponse) -> Iterator[Metric]:
    """Every metric of a snapshot. Counters begin anew with a rank's process, as Prometheus expects."""
    yield from _gateway(cluster)
    yield from _fleet(cluster.fleet)
    ranks = [((str(rank.replica), str(rank.rank)), rank) for rank in cluster.ranks]
    up = GaugeMetricFamily("sigmoe_rank_serving", "Whether a rank serves.", labels=(*_RANK, "host", "device"))
    for label, rank in ranks:
        up.add_metric((*label, rank.host, rank.device), float(rank.state == admin.RANK_STATE_SERVING))
    yield up
    for name, (field, text) in _RANK_GAUGES.items():
        gauge = GaugeMetricFamily(f"sigmoe_{name}", text, labels=_RANK)
        for label, rank in ranks:
            gauge.add_metric(label, getattr(rank, field))
        yield gauge
    for name, (field, text) in _RANK_COUNTERS.items():
        counter = CounterMetricFamily(f"sigmoe_{name}", text, labels=_RANK)
        for label, rank in ranks:
            counter.add_metric(label, getattr(rank, field))
        yield counter
    yield from _steps(ranks)
    yield from _drafts(ranks)


def _gateway(cluster: admin.GetClusterResponse) -> Iterable[Metric]:
    gateway = cluster.gateway
    info = GaugeMetricFamily("sigmoe_info", "What is served.", labels=("model", "version"))
    info.add_metric((cluster.model, cluster.server_version), 1.0)
    ended = CounterMetricFamily("sigmoe_ended_requests", "Calls ended, by canonical status name.", labels=("status",))
    for status, count in sorted(gateway.ended_requests.items()):
        ended.add_metric((status,), count)
    return (
        info,
        ended,
        GaugeMetricFamily("sigmoe_epoch", "Version of membership and expert placement.", cluster.epoch),
        GaugeMetricFamily("sigmoe_uptime_seconds", "Time that the gateway has served.", _seconds(cluster.uptime)),
        GaugeMetricFamily("sigmoe_active_requests", "Calls admitted and not ended.", gateway.active_requests),
        GaugeMetricFamily("sigmoe_max_requests", "The most calls that are admitted.", gateway.max_requests),
        CounterMetricFamily(
            "sigmoe_resumed_requests", "Requests moved because their rank was lost.", gateway.resumed_requests
        ),
        CounterMetricFamily("sigmoe_streamed_tokens", "Tokens given to clients.", gateway.streamed_tokens),
    )


def _fleet(fleet: admin.FleetStatus) -> Iterable[Metric]:
    states = GaugeMetricFamily("sigmoe_replicas", "Replicas by where they are in their lives.", labels=("state",))
    for name, state in admin.ReplicaState.items():
        if state != admin.REPLICA_STATE_UNSPECIFIED:
            number = sum(replica.state == state for replica in fleet.replicas)
            states.add_metric((name.removeprefix("REPLICA_STATE_").lower(),), number)
    yield states
    yield GaugeMetricFamily("sigmoe_wanted_replicas", "Replicas wanted for the present load.", fleet.wanted)
    if fleet.HasField("load"):
        load = fleet.load
        wait_s = _seconds(load.queue_time)
        yield GaugeMetricFamily("sigmoe_queue_age_seconds", "Wait of the first sequence that waits.", wait_s)
        if load.HasField("attainment"):
            share = load.attainment
            yield GaugeMetricFamily("sigmoe_slo_attainment_ratio", "Share of recent answers within their SLO.", share)


def _steps(ranks: list[tuple[tuple[str, str], admin.RankStatus]]) -> Iterable[Metric]:
    seconds = CounterMetricFamily(
        "sigmoe_step_seconds",
        "Time of steps by phase: the model's forward pass, sampling and verification, the draft model following"
        " what the step ran (extend), its further passes (draft).",
        labels=(*_RANK, "phase"),
    )
    experts = CounterMetricFamily(
        "sigmoe_expert_tokens",
        "Rows that a rank's gates sent to a logical expert, over all MoE layers.",
        labels=(*_RANK, "expert"),
    )
    for label, rank in ranks:
        extend_s = _seconds(rank.extend_time)
        seconds.add_metric((*label, "forward"), _seconds(rank.forward_time))
        seconds.add_metric((*label, "sample"), _seconds(rank.sample_time))
        seconds.add_metric((*label, "extend"), extend_s)
        seconds.add_metric((*label, "draft"), max(0.0, _seconds(rank.draft_time) - extend_s))
        for expert, rows in enumerate(rank.expert_tokens):
            experts.add_metric((*label, str(expert)), rows)
    return seconds, experts


def _drafts(ranks: list[tuple[tuple[str, str], admin.RankStatus]]) -> Iterable[Metric]:
    by_method = [
        ((*label, draft_name(drafting.method)), drafting) for label, rank in ranks for drafting in rank.drafting
    ]
    return *_present_drafts(by_method), *_draft_counters(by_method)


def _present_drafts(by_method: list[_OfMethod]) -> Iterable[Metric]:
    states = GaugeMetricFamily(
        "sigmoe_drafting_state",
        "1 for the state that a draft method is in: off (no request has asked for it), fixed (always as many as are"
        " allowed), learning (whether drafts pay), drafting, resting (none pay at present) or broken (switched off,"
        " since next to nothing was accepted: the draft model must be wrong).",
        labels=(*_METHOD, "state"),
    )
    length = GaugeMetricFamily(
        "sigmoe_draft_length", "Tokens drafted for each sequence at present, by draft method.", labels=_METHOD
    )
    error = GaugeMetricFamily(
        "sigmoe_draft_cost_error_ratio",
        "Error of the step times expected when drafts are chosen, of late.",
        labels=_METHOD,
    )
    for label, drafting in by_method:
        for name, state in admin.DraftingState.items():
            if state != admin.DRAFTING_STATE_UNSPECIFIED:
                is_in = float(drafting.state == state)
                states.add_metric((*label, name.removeprefix("DRAFTING_STATE_").lower()), is_in)
        length.add_metric(label, drafting.length)
        error.add_metric(label, drafting.cost_error)
    return states, length, error


def _draft_counters(by_method: list[_OfMethod]) -> Iterable[Metric]:
    rounds = CounterMetricFamily("sigmoe_draft_rounds", "Verifications of drafts, by draft method.", labels=_METHOD)
    committed = CounterMetricFamily(
        "sigmoe_draft_committed_tokens", "Tokens that these verifications brought.", labels=_METHOD
    )
    places = (*_METHOD, "position")
    drafted = CounterMetricFamily("sigmoe_drafted_tokens", "Tokens drafted, by position from 1.", labels=places)
    accepted = CounterMetricFamily("sigmoe_accepted_tokens", "Of these, tokens accepted.", labels=places)
    for label, drafting in by_method:
        drafts = drafting.drafts
        rounds.add_metric(label, drafts.rounds)
        committed.add_metric(label, drafts.committed_tokens)
        for counter, counts in ((drafted, drafts.drafted), (accepted, drafts.accepted)):
            for position, count in enumerate(counts, start=1):
                counter.add_metric((*label, str(position)), count)
    return rounds, committed, drafted, accepted


def _seconds(duration: duration_pb2.Duration) -> float:
    return float(duration.ToTimedelta().total_seconds())
