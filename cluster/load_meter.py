"""What the autoscaler is told: the load of the ranks that take requests, and of those who wait for one.

The background counts apart unless it is to ask for replicas, too. Ranks do not tell whose sequences wait. But a rank
whose foreground waits has preempted its background, so those that wait are the background's first of all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.attainment import Attainment
from cluster.autoscale import Load
from cluster.executor import Executor
from cluster.request_part import Part
from cluster.switchboard import Switchboard
from scheduler.request import SchedulerStats


@dataclass(frozen=True, slots=True, kw_only=True)
class _RankLoad:
    """What counts of one rank."""

    num_waiting: int
    num_blocks: int
    num_used: float


async def measure(
    executor: Executor, switchboard: Switchboard, attainment: Attainment, *, now_s: float, counts_background: bool
) -> Load:
    """Ask every rank; those that do not answer count for nothing. `now_s` is on the switchboard's clock."""
    status = await executor.status()
    num_ranks = executor.info().num_ranks
    stats = {rank.replica * num_ranks + rank.rank: rank.stats for rank in status.ranks}
    aside = [] if counts_background else [part for part in switchboard.parts if part.is_background]
    counted = [part for part in switchboard.parts if counts_background or not part.is_background]
    guests = [guest for guest in switchboard.guests if counts_background or not guest.is_background]
    ranks = [_on_rank(rank, seen, counted, aside) for rank in switchboard.ranks if (seen := stats.get(rank))]
    num_waiting = sum(rank.num_waiting for rank in ranks)
    num_blocks = sum(rank.num_blocks for rank in ranks)
    num_sequences = _sequences(counted) + sum(guest.num_sequences for guest in guests)
    num_all = _sequences(switchboard.parts) + switchboard.num_homeless
    waits_s = [now_s - guest.since for guest in guests]
    return Load(
        num_serving=len(switchboard.ranks) // num_ranks,
        num_sequences=num_sequences,
        num_background=num_all - num_sequences,
        num_waiting=num_waiting + sum(guest.num_sequences for guest in guests),
        num_ended=switchboard.num_ended - (0 if counts_background else switchboard.num_background_ended),
        queue_s=max([0.0, *waits_s, *(now_s - since for since in _quiet(counted)[:num_waiting][-1:])]),
        kv_use=sum(rank.num_used for rank in ranks) / num_blocks if num_blocks else 0.0,
        attainment=attainment.share(),
    )


def _on_rank(number: int, stats: SchedulerStats, counted: list[Part], aside: list[Part]) -> _RankLoad:
    """`aside` are the parts that do not count: they wait first, and those that run have a share of the blocks."""
    others = [part for part in aside if part.assigned.rank == number]
    num_others = _sequences(others)
    num_others_waiting = min(stats.num_waiting, num_others)
    num_used = float(stats.num_blocks - stats.num_free_blocks)
    if num_others:
        ours = _tokens(part for part in counted if part.assigned.rank == number)
        theirs = _tokens(others) * (num_others - num_others_waiting) / num_others
        num_used *= ours / (ours + theirs) if ours + theirs else 0.0
    return _RankLoad(num_waiting=stats.num_waiting - num_others_waiting, num_blocks=stats.num_blocks, num_used=num_used)


def _quiet(parts: list[Part]) -> list[float]:
    """Since when those wait of which nothing has come back, the latest first.

    Ranks take requests in turn, so those that wait are the last of these.
    """
    return sorted((part.since for part in parts if not part.has_begun), reverse=True)


def _sequences(parts: Iterable[Part]) -> int:
    return sum(part.request.num_sequences for part in parts)


def _tokens(parts: Iterable[Part]) -> int:
    """Tokens in the KV cache of those that have begun."""
    return sum(
        len(part.request.prompt) + sum(len(sequence.token_ids) for sequence in part.sequences)
        for part in parts
        if part.has_begun
    )
