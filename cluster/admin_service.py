"""sigmoe.v1.AdminService: a snapshot of gateway, fleet and ranks, and what happened to the fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import timestamp_pb2

from cluster.board import Board, FleetPicture, ReplicaState
from cluster.calls import Calls
from cluster.executor import RankStatus
from cluster.journal import FleetEvent
from cluster.responses import draft_counts
from cluster.sampling_rules import DRAFT_MODELS
from cluster.serving import Serving, seconds_message
from scheduler.request import DraftingState, DraftingStatus
from sigmoe import __version__
from sigmoe.v1 import admin_service_pb2 as admin
from sigmoe.v1 import admin_service_pb2_grpc, types_pb2

_EVENTS_PER_RESPONSE = 500
_STATES = {
    ReplicaState.STARTING: admin.REPLICA_STATE_STARTING,
    ReplicaState.SERVING: admin.REPLICA_STATE_SERVING,
    ReplicaState.RECOVERING: admin.REPLICA_STATE_RECOVERING,
    ReplicaState.DRAINING: admin.REPLICA_STATE_DRAINING,
}
_DRAFTING_STATES = {
    DraftingState.OFF: admin.DRAFTING_STATE_OFF,
    DraftingState.FIXED: admin.DRAFTING_STATE_FIXED,
    DraftingState.LEARNING: admin.DRAFTING_STATE_LEARNING,
    DraftingState.DRAFTING: admin.DRAFTING_STATE_DRAFTING,
    DraftingState.RESTING: admin.DRAFTING_STATE_RESTING,
    DraftingState.BROKEN: admin.DRAFTING_STATE_BROKEN,
}


class AdminService(admin_service_pb2_grpc.AdminServiceServicer):
    """`serving` gives what to answer from, and raises Unavailable while there is nothing."""

    def __init__(self, calls: Calls, serving: Callable[[], Serving], board: Board, configuration: str = "") -> None:
        self._calls = calls
        self._serving = serving
        self._board = board
        self._configuration = configuration

    async def GetCluster(self, call: admin.GetClusterRequest, context: Any) -> admin.GetClusterResponse:
        """The snapshot. It is answered when the gateway is full, too: that is when it is wanted."""
        return await self._calls.look(context, self.snapshot)

    async def ListEvents(self, call: admin.ListEventsRequest, context: Any) -> None:
        """The journal from some event on; while it is followed the call lasts until the client ends it."""

        async def work() -> None:
            journal, last_id = self._board.journal, call.after_id
            events = journal.after(last_id)
            while events or call.follow:
                for start in range(0, len(events), _EVENTS_PER_RESPONSE):
                    some = events[start : start + _EVENTS_PER_RESPONSE]
                    await context.write(admin.ListEventsResponse(events=map(_event, some)))
                if not call.follow:
                    return
                last_id = events[-1].id if events else last_id
                events = await journal.wait(last_id)
                if not events:  # the server stops
                    return

        await self._calls.look(context, work)

    async def snapshot(self) -> admin.GetClusterResponse:
        """State of gateway and ranks. Raises Unavailable."""
        serving = self._serving()
        group = await serving.executor.status()
        return admin.GetClusterResponse(
            model=serving.model.name,
            epoch=group.epoch,
            gateway=self._gateway(serving),
            ranks=[_rank(rank) for rank in sorted(group.ranks, key=lambda rank: (rank.replica, rank.rank))],
            server_version=__version__,
            uptime=serving.uptime(),
            configuration=self._configuration,
            fleet=_fleet(self._board.picture),
        )

    def _gateway(self, serving: Serving) -> admin.GatewayStatus:
        return admin.GatewayStatus(
            active_requests=self._calls.admission.num_active,
            max_requests=self._calls.admission.max_requests,
            ended_requests=self._calls.ended,
            resumed_requests=serving.switchboard.num_resumed,
            streamed_tokens=serving.switchboard.num_tokens,
        )


def _fleet(picture: FleetPicture) -> admin.FleetStatus:
    message = admin.FleetStatus(
        replicas=[admin.ReplicaStatus(replica=one.number, state=_STATES[one.state]) for one in picture.replicas],
        wanted=picture.wanted,
        min_replicas=picture.least,
        max_replicas=picture.most,
        reason=picture.reason,
    )
    if picture.load is not None:
        load = picture.load
        message.load.serving_replicas = load.num_serving
        message.load.sequences = load.num_sequences
        message.load.waiting_sequences = load.num_waiting
        message.load.queue_time.CopyFrom(seconds_message(load.queue_s))
        message.load.kv_use = load.kv_use
        message.load.background_sequences = load.num_background
        if load.attainment is not None:
            message.load.attainment = load.attainment
    return message


def _event(event: FleetEvent) -> admin.FleetEvent:
    time = timestamp_pb2.Timestamp()
    time.FromNanoseconds(round(event.time_s * 1e9))
    return admin.FleetEvent(
        id=event.id,
        time=time,
        kind=event.kind.value,
        replica=event.replica,
        reason=event.reason,
        numbers=dict(event.numbers),
    )


def _rank(status: RankStatus) -> admin.RankStatus:
    message = admin.RankStatus(
        rank=status.rank,
        state=admin.RANK_STATE_SERVING if status.is_alive else admin.RANK_STATE_LOST,
        device=status.device,
        host=status.host,
        pid=status.pid,
        experts=status.experts,
        steps=status.num_steps,
        generated_tokens=status.num_tokens,
        weight_bytes=status.weight_bytes,
        kv_bytes=status.kv_bytes,
        expert_tokens=status.expert_tokens,
        kernels=status.kernels,
        replica=status.replica,
    )
    stats = status.stats
    if stats is not None:
        message.waiting_sequences = stats.num_waiting
        message.running_sequences = stats.num_running
        message.kv_blocks = stats.num_blocks
        message.kv_blocks_free = stats.num_free_blocks
        message.kv_blocks_cached = stats.num_cached_blocks
        message.kv_block_size = stats.block_size
        message.preemptions = stats.num_preemptions
        message.prefix_query_tokens = stats.prefix_query_tokens
        message.prefix_hit_tokens = stats.prefix_hit_tokens
        message.drafts.CopyFrom(draft_counts(stats.drafts) or types_pb2.DraftCounts())
        message.drafting.extend(map(_drafting, stats.drafting))
        for first in stats.drafting[:1]:
            message.draft_length = first.length
            message.draft_reason = first.reason
            message.draft_cost_error = first.cost_error
        message.forward_time.CopyFrom(seconds_message(stats.forward_s))
        message.sample_time.CopyFrom(seconds_message(stats.sample_s))
        message.draft_time.CopyFrom(seconds_message(stats.draft_s))
        message.extend_time.CopyFrom(seconds_message(stats.extend_s))
    return message


def _drafting(status: DraftingStatus) -> admin.DraftingStatus:
    return admin.DraftingStatus(
        method=DRAFT_MODELS[status.method],
        state=_DRAFTING_STATES[status.state],
        length=status.length,
        reason=status.reason,
        drafts=draft_counts(status.counts),
        cost_error=status.cost_error,
    )
