"""What the load test itself costs, against a server without a model: CPU per response, and the streams a core holds.

    python -m benchmarks.loadtest_overhead [--streams 100,500,1000,2000] [--seconds 20] [--out FILE.json]

The load test runs on core 0 alone, the null server on core 1. The server sends each stream a response of five tokens
every 150 ms, which is how a busy sigmoe gateway sends; nothing but the load test (and the null server's own pace) can
then add to a gap. A number of streams is held where the event loop is at most 20 ms late at p99 and 95% of what the
pace allows has arrived. One stream answered at once gives the latency that the load test adds at least.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.run import machine
from sigmoe.loadtest.document import Document, Level

INTERVAL_MS, TOKENS_PER_RESPONSE, TOKENS = 150, 5, 200
MOST_LAG_S, LEAST_SHARE = 0.02, 0.95


@contextmanager
def null_server(*pace: str, core: int = 1) -> Iterator[str]:
    """One on a core of its own; yields its address."""
    command = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.null_server", *pace]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{process.stdout.readline().split()[-1]}"
    finally:
        process.terminate()
        process.wait(timeout=20)


def load(address: str, *arguments: str, core: int = 0) -> Document:
    """A run of the load test on one core."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "r.json"
        command = ["taskset", "-c", str(core), sys.executable, "-m", "sigmoe.cli", "loadtest", "--address", address]
        subprocess.run([*command, "--out", str(out), *arguments], check=True, stdout=subprocess.DEVNULL)
        return Document.read(out)


def held(level: Level, streams: int) -> dict[str, Any]:
    """Whether a level kept the server's pace, and what it took."""
    gaps = {p.percent: p.value for p in level.measures["itl"].percentiles}
    tokens_per_s = level.rates.output_tokens
    # A stream pauses between two answers for about one round trip, which the paced answer outweighs.
    wanted = streams * TOKENS / ((TOKENS / TOKENS_PER_RESPONSE - 1) * INTERVAL_MS / 1000)
    responses_per_s = tokens_per_s / TOKENS_PER_RESPONSE
    is_held = (
        level.client.loop_lag_p99_s <= MOST_LAG_S
        and tokens_per_s >= LEAST_SHARE * wanted
        and level.counts.ok == level.counts.measured
    )
    return {
        "streams": streams,
        "is_held": is_held,
        "tokens_per_s": round(tokens_per_s, 1),
        "tokens_per_s_wanted": round(wanted, 1),
        "cpu_share_of_a_core": round(level.client.cpu_share, 3),
        "cpu_us_per_response": round(1e6 * level.client.cpu_share / responses_per_s, 1),
        "cpu_us_per_token": round(1e6 * level.client.cpu_share / tokens_per_s, 1),
        "loop_lag_p99_ms": round(1000 * level.client.loop_lag_p99_s, 2),
        "gap_p50_ms": round(1000 * gaps[50.0], 1),
        "gap_p99_ms": round(1000 * gaps[99.0], 1),
        "requests": level.counts.measured,
    }


def latency(level: Level) -> dict[str, float]:
    """Of one stream that is answered at once."""
    found = {p.percent: p.value for p in level.measures["e2e"].percentiles}
    return {"e2e_p50_ms": round(1000 * found[50.0], 3), "e2e_p99_ms": round(1000 * found[99.0], 3)}


def main() -> None:
    """Command line; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="100,500,1000,2000")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    course = ("--ramp", "6", "--warmup", "6", "--duration", str(options.seconds), "--drain", "20")
    with null_server("--interval-ms", str(INTERVAL_MS), "--tokens", str(TOKENS_PER_RESPONSE)) as address:
        found = load(address, "--concurrency", options.streams, "--max-tokens", str(TOKENS), *course)
    with null_server() as address:
        at_once = load(address, "--concurrency", "1", "--max-tokens", "1", "--requests", "2000")
    result = {
        "machine": machine(),
        "pace": {"interval_ms": INTERVAL_MS, "tokens_per_response": TOKENS_PER_RESPONSE, "tokens": TOKENS},
        "streams": [held(level, int(level.load["concurrency"])) for level in found.levels],
        "answered_at_once": latency(at_once.levels[0]),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
