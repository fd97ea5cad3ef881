"""Measure how fast the fleet follows its load, and whether it flaps: a server on a fake Ray cluster of this machine.

python -m benchmarks.autoscaling [--model DIR] [--noise-s 120] [--out FILE]

Machines are raylets that Ray's real autoscaler starts over its fake provider, so a machine's own boot is not in the
figures. A replica is one rank with one thread. See docs/autoscaling.md for the meaning of the events.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.fake_cluster import FakeCluster, fake_cluster
from benchmarks.run import machine
from sigmoe import AsyncClient, Client, Cluster, FleetEvent, Sampling, SigmoeError

_ROOT = Path(__file__).resolve().parent.parent
_DEADLINE_S = 180.0
_SETTINGS = {
    "cluster.ranks": 1,
    "cluster.device": "cpu",
    "engine.max_sequences": 4,
    "engine.threads_per_rank": 1,
    "engine.kv_cache_size": "64MiB",
    "scaling.min_replicas": 0,
    "scaling.max_replicas": 2,
    "scaling.target_queue_s": 0.5,
    "scaling.down_after_s": 20,
    "scaling.cool_down_s": 5,
    "scaling.idle_to_zero_s": 30,
}
_NUM_CLIENTS = 16
_MAX_TOKENS = 96
_WINDOW_S = 15.0  # of a throughput


@contextmanager
def server(model: Path, cluster: FakeCluster) -> Iterator[str]:
    """`sigmoe serve` on the cluster; yields its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = _SETTINGS | {"cluster.address": cluster.address, "gateway.port": port}
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "sigmoe.cli", "serve", "--model", str(model), *options]
    process = subprocess.Popen(command, cwd=_ROOT, env=cluster.environment, stdout=subprocess.DEVNULL)
    try:
        with Client(f"127.0.0.1:{port}", timeout_s=5.0) as client:
            _wait(client, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


def _wait(client: Client, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {process.returncode}")
        try:
            client.model()
            return
        except SigmoeError:
            time.sleep(0.2)
    raise RuntimeError("the server did not answer in time")


class Load:
    """Clients that ask without end; `share` of them at a time, drawn anew every few seconds, is noise."""

    def __init__(self, client: AsyncClient) -> None:
        self.num_answers = 0
        self._client = client
        self._active = 0
        self._draw = random.Random(1)
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(_NUM_CLIENTS)]

    def set(self, num_active: int) -> None:
        """So many clients ask from now on."""
        self._active = num_active

    async def noise(self, seconds: float) -> list[int]:
        """Another number of clients every half to five seconds; what they were."""
        end_s, numbers = time.monotonic() + seconds, []
        while time.monotonic() < end_s:
            numbers.append(self._draw.randint(_NUM_CLIENTS // 4, _NUM_CLIENTS))
            self.set(numbers[-1])
            await asyncio.sleep(self._draw.uniform(0.5, 5.0))
        return numbers

    async def end(self) -> None:
        """Let those under way end."""
        self._active = -1
        await asyncio.gather(*self._tasks)

    async def _ask(self, number: int) -> None:
        sampling = Sampling(max_tokens=_MAX_TOKENS, temperature=0.0, ignore_eos=True)
        while self._active >= 0:
            if number >= self._active:
                await asyncio.sleep(0.05)
                continue
            turns = [{"role": "user", "content": f"What is asthma? ({number}, {self.num_answers})"}]
            await self._client.chat(turns, sampling).result()
            self.num_answers += 1


async def seen(client: AsyncClient, is_it: Callable[[FleetEvent], bool], after_id: int) -> FleetEvent:
    """The first such event after another."""
    async with asyncio.timeout(_DEADLINE_S):
        async for event in client.events(after_id=after_id, follow=True):
            if is_it(event):
                return event
    raise AssertionError("the journal ended")


def kind_of(kind: str, replica: int | None = None) -> Callable[[FleetEvent], bool]:
    return lambda event: event.kind == kind and event.replica == replica


async def last_id(client: AsyncClient) -> int:
    return max([event.id async for event in client.events()], default=0)


async def rate(client: AsyncClient, seconds: float) -> float:
    """Tokens streamed a second."""
    before, start_s = (await client.cluster()).gateway.streamed_tokens, time.monotonic()
    await asyncio.sleep(seconds)
    tokens = (await client.cluster()).gateway.streamed_tokens - before
    return tokens / (time.monotonic() - start_s)


def num_flaps(events: list[FleetEvent]) -> int:
    """Changes of direction of the number wanted."""
    steps = [event.numbers["wanted"] > event.numbers["before"] for event in events if event.kind == "scale"]
    return sum(a != b for a, b in itertools.pairwise(steps))


async def measure(address: str, cluster: FakeCluster, noise_s: float) -> dict[str, Any]:
    """Rise, noise, fall, zero, and back."""
    found: dict[str, Any] = {}
    async with AsyncClient(address, timeout_s=_DEADLINE_S) as client:
        before = (await client.cluster()).gateway.ended_requests["OK"]
        load = Load(client)
        load.set(2)
        await asyncio.sleep(10.0)
        mark, start = await last_id(client), time.time()
        load.set(_NUM_CLIENTS)
        wish = await seen(client, kind_of("scale"), mark)
        served = await seen(client, kind_of("serving", 1), mark)
        found["rise"] = {
            "decision_s": wish.time.timestamp() - start,
            "machine_and_replica_s": served.time.timestamp() - wish.time.timestamp(),
            "reaction_s": served.time.timestamp() - start,
            "reason": wish.reason,
            "raylets": cluster.num_raylets(),
        }
        await asyncio.sleep(3.0)
        found["tokens_s_two_replicas"] = await rate(client, _WINDOW_S)
        mark = await last_id(client)
        numbers = await load.noise(noise_s)
        noisy = [event async for event in client.events(after_id=mark)]
        found["noise"] = {
            "seconds": noise_s,
            "clients": numbers,
            "changes": sum(event.kind == "scale" for event in noisy),
            "flaps": num_flaps(noisy),
        }
        found["fall"] = await _fall(client, cluster, load)
        found["from_zero"] = await _from_zero(client)
        events = [event async for event in client.events()]
        ended = (await client.cluster()).gateway.ended_requests
        found["events"] = [_plain(event) for event in events]
        found["wanted"] = [event.numbers["wanted"] for event in events if event.kind == "scale"]
        found["answers"] = load.num_answers + 1
        assert ended == {"OK": before + found["answers"]}, f"{before} and {found['answers']} answers, {ended}"
    return found


async def _fall(client: AsyncClient, cluster: FakeCluster, load: Load) -> dict[str, float]:
    mark = await last_id(client)
    await load.end()
    start, start_s = time.time(), time.monotonic()
    drain = await seen(client, kind_of("draining", 1), mark)
    removed = await seen(client, kind_of("removed", 1), mark)
    last = await seen(client, kind_of("removed", 0), mark)
    async with asyncio.timeout(_DEADLINE_S):
        while cluster.num_raylets() > 1:
            await asyncio.sleep(0.2)
    return {
        "decision_s": drain.time.timestamp() - start,
        "drain_s": removed.time.timestamp() - drain.time.timestamp(),
        "zero_s": last.time.timestamp() - start,
        "machines_gone_s": time.monotonic() - start_s,
    }


async def _from_zero(client: AsyncClient) -> dict[str, float]:
    sampling, start_s = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True), time.monotonic()
    first_s = 0.0
    async for _ in client.generate("Asthma is", sampling):
        first_s = first_s or time.monotonic() - start_s
    return {"first_token_s": first_s}


async def one_replica(address: str) -> float:
    """Tokens a second of one replica alone, with as many clients as it has places."""
    async with AsyncClient(address, timeout_s=_DEADLINE_S) as client:
        load = Load(client)
        load.set(int(_SETTINGS["engine.max_sequences"]))  # type: ignore[call-overload]
        await asyncio.sleep(3.0)
        tokens_s = await rate(client, _WINDOW_S)
        await load.end()
        replicas: Cluster = await client.cluster()
        assert len(replicas.fleet.replicas) == 1, replicas.fleet
        return tokens_s


def _plain(event: FleetEvent) -> dict[str, Any]:
    return {
        "time": event.time.isoformat(),
        "kind": event.kind,
        "replica": event.replica,
        "reason": event.reason,
        "numbers": event.numbers,
    }


def main() -> None:
    """Command line; prints JSON, and writes it where told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=_ROOT / "models" / "sigmoe-demo")
    parser.add_argument("--noise-s", type=float, default=120.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with (
        fake_cluster(cpus_per_node=1, max_nodes=3, idle_s=5.0) as cluster,
        server(options.model, cluster) as address,
    ):
        alone = asyncio.run(one_replica(address))
        found = {"tokens_s_one_replica": alone} | asyncio.run(measure(address, cluster, options.noise_s))
    document = {"machine": machine(), "settings": _SETTINGS, "measured": found}
    text = json.dumps(document, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
