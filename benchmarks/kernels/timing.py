"""How a kernel is timed and what is told about it.

On a GPU if there is one. A call is then captured in a CUDA graph, so that what is timed is the device's work; capture
fails where a kernel waits for the host. Inputs may lie in L2, as they do behind the kernel that made them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from benchmarks.kernels.machines import MACHINES, Machine, this_machine
from kernels import native

_CALLS, _ROUNDS = 20, 20  # of a captured graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One shape of one kernel; `rival` computes the same with torch alone."""

    name: str
    run: Callable[[], object]
    num_bytes: int
    num_flop: int = 0
    operands: torch.dtype = torch.float32  # of the products, for the floor
    rival: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One case on one machine."""

    case: str
    machine: str
    kernels: str
    us: float
    gb_s: float
    tflop_s: float
    floor_us: float
    torch_us: float | None


def measure(case: Case) -> Measured:
    """Time one case, and its rival."""
    machine = this_machine()
    us = _graph_us(case.run) if torch.cuda.is_available() else best_us(case.run)
    return Measured(
        case=case.name,
        machine=machine.name,
        kernels="triton" if torch.cuda.is_available() else native.backend(),
        us=us,
        gb_s=case.num_bytes / us / 1e3,
        tflop_s=case.num_flop / us / 1e6,
        floor_us=machine.floor_us(case.num_bytes, case.num_flop, case.operands),
        torch_us=None if case.rival is None else best_us(case.rival),
    )


def best_us(run: Callable[[], object], min_s: float = 0.2) -> float:
    """Microseconds of the fastest call: on a shared machine the others measure its neighbours."""
    wait: Callable[[], object] = torch.cuda.synchronize if torch.cuda.is_available() else int
    run()
    wait()
    best_s, until_s = float("inf"), time.perf_counter() + min_s
    while time.perf_counter() < until_s:
        start_s = time.perf_counter()
        run()
        wait()
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s * 1e6


def _graph_us(run: Callable[[], object]) -> float:
    """Microseconds of a call on the device, the best of some rounds of a captured graph."""
    run()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            run()
    best_ms = float("inf")
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        best_ms = min(best_ms, start.elapsed_time(end))
    return best_ms * 1e3 / _CALLS


def report(cases: Callable[[], list[Case]] | list[Case]) -> None:
    """Print one line a case; with --json one JSON document a line; with --floor H20 what bounds it there, unrun."""
    device = "cuda" if torch.cuda.is_available() and "--floor" not in sys.argv else "cpu"
    with torch.device(device):
        made = cases if isinstance(cases, list) else cases()
        for case in made:
            if "--floor" in sys.argv:
                print(_floor_line(case, next(m for m in MACHINES if m.name == sys.argv[-1])))
            else:
                measured = measure(case)
                print(json.dumps(asdict(measured)) if "--json" in sys.argv else _line(measured))


def _floor_line(case: Case, machine: Machine) -> str:
    floor_us = machine.floor_us(case.num_bytes, case.num_flop, case.operands)
    return f"{case.name:44s} {case.num_bytes / 1e6:10.3f} MB {case.num_flop / 1e6:10.1f} MFLOP {floor_us:8.2f} us"


def _line(m: Measured) -> str:
    against = f"  torch {m.torch_us:9.1f} us" if m.torch_us is not None else ""
    share = f"{100 * m.floor_us / m.us:4.0f}% of the floor's speed"
    return f"{m.case:44s} {m.us:9.1f} us {m.gb_s:7.1f} GB/s {m.tflop_s:8.3f} TFLOP/s {share}{against}"
