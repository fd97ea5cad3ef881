"""Levels and documents as tests need them, made by real runs in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

from sigmoe.loadtest.document import Document, Level
from sigmoe.loadtest.load import Load, Schedule
from sigmoe.loadtest.plan import Plan
from sigmoe.loadtest.player import Player, Tally, Target
from sigmoe.loadtest.runner import Run, Runner
from sigmoe.loadtest.session import Session
from sigmoe.loadtest.tested import Tested
from sigmoe.loadtest.workload import DataSet, Item
from sigmoe.results import Cluster, Drafts, GatewayState, Model, RankState
from sigmoe.sampling import Sampling
from tests.sigmoe.loadtest.virtual_time import run_virtually

ITEMS = tuple(Item(prompt=f"prompt {index}") for index in range(10))
WORKLOAD = DataSet(name="ten", given=ITEMS)


class Silent:
    def begin(self, label: str, schedule: Schedule, tally: Tally) -> None: ...

    def end(self, level: Level) -> None: ...


async def run_level(target: Target, load: Load, *, stop_after_s: float | None = None, **schedule: Any) -> Run:
    loop = asyncio.get_running_loop()
    begun_s, stop = loop.time(), asyncio.Event()
    if stop_after_s is not None:
        loop.call_later(stop_after_s, stop.set)
    player = Player(target, lambda: loop.time() - begun_s, Sampling(), seed=0)
    runner = Runner(player, lambda: loop.time() - begun_s, Schedule(**schedule), stop)
    items = load.trace.items("0") if hasattr(load, "trace") else WORKLOAD.items("0")
    return await runner.run(load, items, "0/0")


def tested(target: Target, num_ranks: int = 2, num_experts: int = 4) -> Tested:
    looks = 0

    async def look() -> Cluster:
        nonlocal looks
        looks += 1
        return cluster(num_ranks, [100 * looks * (e + 1) for e in range(num_experts)])

    return Tested(
        address="127.0.0.1:1", target=target, look=look, model=MODEL, cluster=cluster(num_ranks, [0] * num_experts)
    )


def document(target: Target, *loads: Load, num_ranks: int = 2, **plan: Any) -> Document:
    """A whole run."""
    made = Plan(
        **{
            "label": "a test",
            "seed": 1,
            "workload": WORKLOAD,
            "loads": loads,
            "schedule": Schedule(warmup_s=1.0, duration_s=10.0),
            "sampling": Sampling(),
            **plan,
        }
    )

    async def go() -> Document:
        return await Session(made, tested(target, num_ranks), Silent(), asyncio.Event()).run()

    return run_virtually(go())


MODEL = Model(
    name="simulated",
    architecture="",
    vocab_size=100,
    max_context=1000,
    num_layers=2,
    num_experts=4,
    num_experts_per_token=2,
    dtype="float32",
    eos_token_ids=(0,),
    server_version="1",
    uptime_s=1.0,
    draft_model="off",
)


def cluster(num_ranks: int, expert_tokens: list[int]) -> Cluster:
    zeros = dict.fromkeys(
        (
            "waiting_sequences",
            "kv_blocks_cached",
            "kv_block_size",
            "steps",
            "generated_tokens",
            "preemptions",
            "prefix_query_tokens",
            "prefix_hit_tokens",
            "weight_bytes",
            "kv_bytes",
            "draft_length",
        ),
        0,
    )
    ranks = tuple(
        RankState(
            rank=rank,
            state="serving",
            device="cpu",
            host="here",
            pid=1,
            experts=(0, 1),
            running_sequences=3,
            kv_blocks=10,
            kv_blocks_free=4,
            expert_tokens=tuple(expert_tokens),
            kernels="none",
            drafts=Drafts(rounds=0, committed_tokens=0, drafted=(), accepted=()),
            draft_reason="",
            forward_s=0.0,
            sample_s=0.0,
            draft_s=0.0,
            extend_s=0.0,
            draft_cost_error=0.0,
            drafting=(),
            **zeros,
        )
        for rank in range(num_ranks)
    )
    state = GatewayState(active_requests=5, max_requests=9, ended_requests={}, resumed_requests=0, streamed_tokens=0)
    return Cluster(
        model="simulated",
        epoch=1,
        gateway=state,
        ranks=ranks,
        server_version="1",
        uptime_s=1.0,
        configuration={"engine": {"max_sequences": 64}},
    )
