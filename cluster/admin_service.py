"""sigmoe.v1.AdminService: a snapshot of gateway and ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.calls import Calls
from cluster.executor import RankStatus
from cluster.responses import draft_counts
from cluster.serving import Serving, seconds_message
from sigmoe import __version__
from sigmoe.v1 import admin_service_pb2 as admin
from sigmoe.v1 import admin_service_pb2_grpc, types_pb2


class AdminService(admin_service_pb2_grpc.AdminServiceServicer):
    """`serving` gives what to answer from, and raises Unavailable while there is nothing."""

    def __init__(self, calls: Calls, serving: Callable[[], Serving]) -> None:
        self._calls = calls
        self._serving = serving

    async def GetCluster(self, call: admin.GetClusterRequest, context: Any) -> admin.GetClusterResponse:
        """The snapshot. It is answered when the gateway is full, too: that is when it is wanted."""

        async def work() -> admin.GetClusterResponse:
            serving = self._serving()
            group = await serving.executor.status()
            return admin.GetClusterResponse(
                model=serving.model.name,
                epoch=group.epoch,
                gateway=self._gateway(serving),
                ranks=[_rank(rank) for rank in sorted(group.ranks, key=lambda rank: rank.rank)],
                server_version=__version__,
                uptime=serving.uptime(),
            )

        return await self._calls.look(context, work)

    def _gateway(self, serving: Serving) -> admin.GatewayStatus:
        return admin.GatewayStatus(
            active_requests=self._calls.admission.num_active,
            max_requests=self._calls.admission.max_requests,
            ended_requests=self._calls.ended,
            resumed_requests=serving.switchboard.num_resumed,
            streamed_tokens=serving.switchboard.num_tokens,
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
        message.draft_length = stats.draft_length
        message.draft_reason = stats.draft_reason
        message.forward_time.CopyFrom(seconds_message(stats.forward_s))
        message.sample_time.CopyFrom(seconds_message(stats.sample_s))
        message.draft_time.CopyFrom(seconds_message(stats.draft_s))
    return message
