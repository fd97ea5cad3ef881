"""How a kernel is timed and what is told about it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from kernels import native

# One core pair of a two-core cloud machine, measured with a sum over 200 MB and a 2048-cubed fp32 product.
FLOOR_GB_S = 31.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape of one kernel; `rival` computes the same with torch alone."""

    name: str
    run: Callable[[], object]
    num_bytes: int
    num_flop: int = 0
    rival: Callable[[], object] | None = None


def best_us(run: Callable[[], object], min_s: float = 0.2) -> float:
    """Microseconds of the fastest call: on a shared machine the others measure its neighbours."""
    run()
    best_s, until_s = float("inf"), time.perf_counter() + min_s
    while time.perf_counter() < until_s:
        start_s = time.perf_counter()
        run()
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s * 1e6


def report(cases: list[Case]) -> None:
    """Print one line a case; with --json one JSON document a line."""
    for case in cases:
        us = best_us(case.run)
        rival_us = best_us(case.rival) if case.rival is not None else None
        gb_s, gflop_s = case.num_bytes / us / 1e3, case.num_flop / us / 1e3
        if "--json" in sys.argv:
            figures = {"us": us, "gb_s": gb_s, "gflop_s": gflop_s, "torch_us": rival_us, "kernels": native.backend()}
            print(json.dumps({"case": case.name, **figures}))
            continue
        against = f"  torch {rival_us:9.1f} us" if rival_us is not None else ""
        share = f"{100 * gb_s / FLOOR_GB_S:4.0f}% of memory"
        print(f"{case.name:36s} {us:9.1f} us {gb_s:7.1f} GB/s {share} {gflop_s:8.1f} GFLOP/s{against}")
