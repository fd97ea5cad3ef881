"""Every kernel's own benchmark, on the device: against its floor, torch or cuBLAS, and the measured bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch

from benchmarks.gpu.bandwidth import measured_gb_s
from benchmarks.gpu.session import Figures, NoTime, Session
from benchmarks.kernels import (
    gate,
    grouped_swiglu,
    linear,
    paged_attention,
    permute,
    quantise,
    rms_norm,
    rope_kv,
    sample,
    step,
)
from benchmarks.kernels.paged_batch import Heads
from benchmarks.kernels.timing import Case, measure
from kernels.quantise.formats import Scaling

Cases = Callable[[], list[Case]]

# What bounds a decode comes first, in case that the time does not last.
FULL: dict[str, Cases] = {
    "grouped_swiglu": grouped_swiglu.cases,
    "linear": linear.cases,
    "paged_attention": paged_attention.cases,
    "gate": gate.cases,
    "permute": permute.cases,
    "rms_norm": rms_norm.cases,
    "rope_kv": rope_kv.cases,
    "quantise": quantise.cases,
    "sample": sample.cases,
    "step": step.cases,
}


def _tiny_experts() -> list[Case]:
    shape = grouped_swiglu.Shape(num_experts=8, hidden=128, inner=64)
    return [grouped_swiglu.case(grouped_swiglu.random_experts(shape, s), 1, s.value) for s in Scaling]


_TINY_HEADS = Heads(num=4, num_kv=2, dim=16)
TINY: dict[str, Cases] = {
    "grouped_swiglu": _tiny_experts,
    "linear": lambda: [linear.case(2, 64, 128), linear.fp8_case(2, 64, 128, Scaling.BLOCKS)],
    "paged_attention": lambda: [paged_attention.case(2, 20, 1, _TINY_HEADS, torch.bfloat16)],
    "gate": lambda: [gate.case(2, 16, 64)],
    "permute": lambda: permute.round_trip(2, 16, 64),
    "rms_norm": lambda: [rms_norm.case(2, 128), rms_norm.quantised_case(2, 128, Scaling.BLOCKS)],
    "rope_kv": lambda: [rope_kv.case(rope_kv.Heads(name="tiny", query=4, kv=2, dim=16), 2, torch.bfloat16)],
    "quantise": lambda: [quantise.case(2, 128, per_token=False)],
    "sample": lambda: [sample.case("all", 2, 256, top_k=0, top_p=1.0)],
    "step": lambda: step.step(2, 3) + step.drafting(2, 40),
}


def time_kernels(session: Session) -> Figures:
    """All cases that the time allows."""
    cases = TINY if session.tiny else FULL
    return session.each({name: partial(_measured, session, make) for name, make in cases.items()}, needed_s=5.0)


def _measured(session: Session, make: Cases) -> Figures:
    gb_s = measured_gb_s(session)
    found: Figures = {"ok": True, "cases": []}
    for case in make():
        try:
            session.demand_time(2.0)
            measured = measure(case)
        except NoTime as error:
            found["not_run"] = [*found.get("not_run", []), f"{case.name}: {error}"]
        except Exception as error:  # a case that fails does not take the others along
            found["ok"] = False
            found["failed"] = [*found.get("failed", []), f"{case.name}: {type(error).__name__}: {error}"]
        else:
            share = {} if gb_s is None else {"of_measured_bandwidth": measured.gb_s / gb_s}
            found["cases"].append(asdict(measured) | {"of_floor": measured.floor_us / measured.us} | share)
    return found
