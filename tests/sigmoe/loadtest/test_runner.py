"""Loads, windows and ends, in virtual time: what is sent when, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sigmoe.errors import Overloaded, ServerFailure, Unavailable
from sigmoe.loadtest import measures
from sigmoe.loadtest.arrivals import Arrivals, Process
from sigmoe.loadtest.load import Closed, Open
from sigmoe.loadtest.player import Ask, Player
from sigmoe.loadtest.record import UNFINISHED
from sigmoe.loadtest.runner import Run
from sigmoe.loadtest.workload import Item
from sigmoe.results import Chunk
from sigmoe.sampling import Sampling
from tests.sigmoe.loadtest.levels import run_level
from tests.sigmoe.loadtest.virtual_time import SimulatedServer, block, run_virtually

CONSTANT = Open(arrivals=Arrivals(rate=10.0, process=Process.CONSTANT))


def ttft(run: Run, statistic: str = "p99") -> float:
    summary = measures.summaries(measures.measured(run))["ttft"]
    return next(p.value for p in summary.percentiles if f"p{p.percent:g}" == statistic)


async def stalled(load: Closed | Open) -> Run:
    server = SimulatedServer(stall=(5.0, 10.0))
    return await run_level(server, load, duration_s=20.0)


def test_an_open_loop_shows_a_stall_and_a_closed_one_hides_it() -> None:
    """Half a second of 20 is what one client loses; the requests that were due meanwhile lose five seconds."""
    opened, closed = run_virtually(stalled(CONSTANT)), run_virtually(stalled(Closed(concurrency=1)))
    assert len(measures.measured(opened)) == 199
    assert ttft(opened) == pytest.approx(5.0, abs=0.1)
    assert ttft(opened, "p90") == pytest.approx(3.0, abs=0.2)
    assert ttft(opened, "p50") == pytest.approx(0.01, abs=1e-6)
    assert ttft(closed) == pytest.approx(0.01, abs=1e-6)


class BlockingServer(SimulatedServer):
    """The fifth request keeps the client's own loop busy for three seconds."""

    async def ask(self, ask: Ask) -> AsyncIterator[Chunk]:
        if len(self.asked) == 4:
            block(3.0)
        async for chunk in super().ask(ask):
            yield chunk


def test_a_busy_client_cannot_hide_either() -> None:
    async def go() -> Run:
        return await run_level(BlockingServer(), CONSTANT, duration_s=5.0)

    run = run_virtually(go())
    late = [record.send_lag_s for record in run.records]
    assert max(late) == pytest.approx(2.9, abs=0.05)
    assert all(record.ttft_s is not None and record.ttft_s >= record.send_lag_s for record in run.records)


def test_a_closed_loop_keeps_its_concurrency() -> None:
    async def go() -> Run:
        return await run_level(SimulatedServer(), Closed(concurrency=7), warmup_s=1.0, duration_s=10.0)

    run = run_virtually(go())
    events = sorted([(r.sent_s, 1) for r in run.records] + [(r.ended_s, -1) for r in run.records])
    level = most = 0
    for _, change in sorted(events, key=lambda event: (event[0], event[1])):
        level += change
        most = max(most, level)
    assert most == 7 and level == 0
    rates = measures.rates(run, ())
    assert rates.completed == pytest.approx(7 / 0.05, rel=0.02)
    assert rates.output_tokens == pytest.approx(7 / 0.01, rel=0.02)


def test_the_ramp_and_the_warm_up_are_not_measured() -> None:
    async def go() -> Run:
        return await run_level(SimulatedServer(), Closed(concurrency=4), ramp_s=4.0, warmup_s=2.0, duration_s=5.0)

    run = run_virtually(go())
    assert (run.start_s, run.end_s) == (6.0, 11.0)
    starts = sorted(r.sent_s for r in run.records if r.item < 200)
    assert starts[0] == 0.0 and not [s for s in starts if s < 1.0 and s % 0.05 > 0.001 and s % 0.05 < 0.049]
    counts = measures.counts(run, ())
    assert counts.measured == counts.ok == 400
    assert counts.outside == len(run.records) - 400 > 0


@pytest.mark.parametrize("load", [Closed(concurrency=3), CONSTANT], ids=["closed", "open"])
def test_a_number_of_requests_ends_with_the_last_answer(load: Closed | Open) -> None:
    async def go() -> Run:
        return await run_level(SimulatedServer(num_tokens=10), load, warmup_s=1.0, num_requests=20)

    run = run_virtually(go())
    counts = measures.counts(run, ())
    assert counts.measured == counts.ok == 20
    assert run.end_s == max(record.ended_s for record in run.records)
    assert measures.rates(run, ()).completed * (run.end_s - run.start_s) >= 20


def test_what_is_not_done_after_the_drain_is_cancelled_and_counted() -> None:
    async def go() -> Run:
        return await run_level(SimulatedServer(stall=(3.0, 1000.0)), CONSTANT, duration_s=5.0, drain_s=7.0)

    run = run_virtually(go())
    counts = measures.counts(run, ())
    assert not run.is_interrupted
    assert counts.unfinished == sum(record.code == UNFINISHED for record in run.records) > 15
    assert counts.ok + counts.unfinished == counts.measured == 49
    assert max(record.ended_s for record in run.records) == pytest.approx(12.0)
    assert measures.rates(run, ()).error_ratio == counts.unfinished / 49


def test_a_stop_ends_the_level_with_what_was_measured() -> None:
    async def go() -> Run:
        return await run_level(SimulatedServer(), CONSTANT, stop_after_s=3.0, duration_s=100.0)

    run = run_virtually(go())
    assert run.is_interrupted and run.end_s == pytest.approx(3.0)
    assert measures.counts(run, ()).ok == 29


def test_failures_are_counted_by_code_and_never_dropped() -> None:
    failures = [Overloaded("full"), Unavailable("gone"), ServerFailure("DATA_LOSS: x", "DATA_LOSS"), Overloaded("full")]

    async def go() -> Run:
        return await run_level(SimulatedServer(failures=list(failures)), CONSTANT, duration_s=2.0)

    counts = measures.counts(run_virtually(go()), ())
    assert counts.failed == {"DATA_LOSS": 1, "RESOURCE_EXHAUSTED": 2, "UNAVAILABLE": 1}
    assert counts.ok == counts.measured - 4 == 15
    assert counts.examples["UNAVAILABLE"] == "gone"


def test_a_closed_loop_waits_after_failures() -> None:
    """Else a dead server would be asked some hundred thousand times, and the count of failures mean nothing."""

    async def go() -> Run:
        server = SimulatedServer(failures=[Unavailable("gone")] * 10_000)
        return await run_level(server, Closed(concurrency=2), duration_s=60.0)

    counts = measures.counts(run_virtually(go()), ())
    assert counts.ok == 0 and 100 < counts.measured < 140


class Unending(SimulatedServer):
    async def ask(self, ask: Ask) -> AsyncIterator[Chunk]:
        yield Chunk(request_id="r", index=0, text="a", token_ids=(1,))


class Failing(SimulatedServer):
    async def ask(self, ask: Ask) -> AsyncIterator[Chunk]:
        yield Chunk(request_id="r", index=0, text="a", token_ids=(1,), finish_reason="error", error="a bad sequence")


@pytest.mark.parametrize(
    ("server", "error"),
    [(Unending, "without a finish reason"), (Failing, "a bad sequence")],
    ids=["unending", "failing"],
)
def test_a_stream_that_ends_badly_is_a_failure(server: type[SimulatedServer], error: str) -> None:
    async def go() -> Run:
        return await run_level(server(), CONSTANT, duration_s=1.0)

    counts = measures.counts(run_virtually(go()), ())
    assert counts.failed == {"INTERNAL": 9} and error in counts.examples["INTERNAL"]


def play(item: Item, *, may_go_on: bool = True) -> tuple[SimulatedServer, Player]:
    server = SimulatedServer(num_tokens=2)

    async def go() -> Player:
        player = Player(server, asyncio.get_running_loop().time, Sampling(max_tokens=9), seed=5)
        await player.play(item, 0.0, lambda: may_go_on)
        return player

    return server, run_virtually(go())


def test_a_conversation_goes_on_with_the_answers() -> None:
    rounds = tuple(({"role": "user", "content": text},) for text in ("one", "two"))
    server, player = play(Item(rounds=rounds))
    said = [(m["role"], m["content"]) for m in server.asked[1].messages]
    assert said == [("user", "one"), ("assistant", "t0 t1 "), ("user", "two")]
    second = player.tally.records[1]
    assert second.round == 1 and second.intended_s == player.tally.records[0].ended_s
    assert len(play(Item(rounds=rounds), may_go_on=False)[1].tally.records) == 1


def test_lengths_are_forced_and_each_request_has_a_seed_of_its_own() -> None:
    server, _ = play(Item(prompt=(1, 2), output_tokens=33))
    sampling = server.asked[0].sampling
    assert (sampling.max_tokens, sampling.ignore_eos) == (33, True)
    assert server.asked[0].prompt == (1, 2) and sampling.seed == 5 * 1_000_003
    assert play(Item(prompt="x"))[0].asked[0].sampling.max_tokens == 9
