"""`sigmoe status`: a picture of the cluster."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from sigmoe.cli.options import add_connection, connect
from sigmoe.cli.output import print_json
from sigmoe.results import Cluster, Drafting, Fleet, RankState

_DESCRIPTION = """\
Show replicas, ranks, KV cache, queues and expert load. The last line shades each expert by the rows routed to it,
against an even load: . under half, - below, + above, # over one and a half times the even share.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `status` to the command line."""
    parser = commands.add_parser("status", help="show the cluster", description=_DESCRIPTION)
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="show again every so many seconds")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show one snapshot, or one after the other."""
    with connect(args) as client:
        if args.json:
            print_json(client.cluster())
        elif args.watch is None:
            Console().print(picture(client.cluster()))
        else:
            _watch(lambda: picture(client.cluster()), args.watch)
    return 0


def _watch(draw: Callable[[], RenderableType], interval_s: float) -> None:
    if interval_s <= 0:
        raise ValueError(f"--watch: {interval_s} is not positive")
    with Live(draw(), auto_refresh=False) as live:
        while True:
            time.sleep(interval_s)
            live.update(draw(), refresh=True)


def picture(cluster: Cluster) -> RenderableType:
    """Everything an operator looks at first, for the terminal."""
    gateway = cluster.gateway
    ended = ", ".join(f"{name} {count}" for name, count in sorted(gateway.ended_requests.items())) or "none"
    lines = [
        f"{cluster.model}  epoch {cluster.epoch}  up {cluster.uptime_s:.0f} s  version {cluster.server_version}",
        f"gateway  {_bar(gateway.active_requests, gateway.max_requests)} requests  ended: {ended}",
        f"         {gateway.streamed_tokens} tokens streamed, {gateway.resumed_requests} requests resumed",
        *_fleet_lines(cluster.fleet),
    ]
    for rank in cluster.ranks:
        lines += _rank_lines(rank, has_replicas=cluster.fleet.max_replicas > 1)
    lines.append(f"experts  {expert_load(cluster.ranks)}")
    return Text("\n".join(lines), overflow="fold")


def _fleet_lines(fleet: Fleet) -> list[str]:
    """Replicas by state, how many are wanted and why; nothing where there is only ever one."""
    if fleet.max_replicas <= 1 and fleet.min_replicas == 1:
        return []
    states = ", ".join(f"{one.replica} {one.state}" for one in fleet.replicas) or "none"
    lines = [f"replicas {states}  wanted {fleet.wanted} of {fleet.min_replicas} to {fleet.max_replicas}"]
    if fleet.reason:
        lines.append(f"         {fleet.reason}")
    if fleet.load is not None:
        load = fleet.load
        beside = f", {load.background_sequences} in the background" if load.background_sequences else ""
        slo = "" if load.attainment is None else f", {100 * load.attainment:.0f}% within SLO"
        lines.append(
            f"         {load.sequences} sequences, {load.waiting_sequences} waiting for up to {load.queue_s:.1f} s, "
            f"KV {100 * load.kv_use:.0f}%{slo}{beside}"
        )
    return lines


def _rank_lines(rank: RankState, *, has_replicas: bool) -> list[str]:
    hits = f"{100 * rank.prefix_hit_tokens / rank.prefix_query_tokens:.0f}%" if rank.prefix_query_tokens else "none"
    mib = rank.weight_bytes / 2**20
    name = f"replica {rank.replica} rank {rank.rank:<3d}" if has_replicas else f"rank {rank.rank:<3d}"
    return [
        f"{name} {rank.state}  {rank.device}  {rank.host}:{rank.pid}  experts {ranges(rank.experts)}",
        f"  KV     {_bar(rank.kv_blocks - rank.kv_blocks_free, rank.kv_blocks)} blocks of {rank.kv_block_size}, "
        f"{rank.kv_blocks_cached} cached, prefix hits {hits}",
        f"  queue  {rank.running_sequences} running, {rank.waiting_sequences} waiting, {rank.preemptions} preemptions",
        f"  work   {rank.generated_tokens} tokens in {rank.steps} steps, {mib:.0f} MiB of weights, {rank.kernels}",
        f"  time   {rank.forward_s:.1f} s in the model, {rank.sample_s:.1f} s sampling, {rank.draft_s:.1f} s drafting "
        f"({rank.extend_s:.1f} s of it following)",
        *map(_draft_line, rank.drafting),
    ]


def _draft_line(drafting: Drafting) -> str:
    """What a draft method does and brought, acceptance by place, the present length and why."""
    drafts = drafting.drafts
    brought = "no round yet"
    if drafts.tau is not None:
        accepted = " ".join(f"{100 * a / d:.0f}%" for a, d in zip(drafts.accepted, drafts.drafted, strict=False) if d)
        brought = (
            f"{sum(drafts.drafted)} drafted, {drafts.committed_tokens} committed, {drafts.tau:.2f} tokens a round, "
            f"accepted {accepted}"
        )
    why = f"; {drafting.reason}" if drafting.reason else ""
    return f"  drafts {drafting.method} {drafting.state}, {drafting.length} at a time: {brought}{why}"


def _bar(part: int, whole: int, width: int = 20) -> str:
    filled = round(width * part / whole) if whole else 0
    return f"[{'#' * filled}{'.' * (width - filled)}] {part}/{whole}"


def ranges(ids: tuple[int, ...]) -> str:
    """Ascending ids as ranges: (0, 1, 2, 5) is '0-2,5'."""
    parts: list[list[int]] = []
    for value in ids:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def expert_load(ranks: tuple[RankState, ...]) -> str:
    """One sign for each expert by its load over all ranks, and the largest load against the mean."""
    width = max((len(rank.expert_tokens) for rank in ranks), default=0)
    loads = [sum(rank.expert_tokens[e] for rank in ranks if e < len(rank.expert_tokens)) for e in range(width)]
    if not any(loads):
        return "no tokens yet"
    mean = sum(loads) / width
    signs = "".join(".-+#"[(load >= 0.5 * mean) + (load >= mean) + (load >= 1.5 * mean)] for load in loads)
    return f"{signs}  max/mean {max(loads) / mean:.2f}"
