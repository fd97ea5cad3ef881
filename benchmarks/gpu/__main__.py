"""Measure a Hopper GPU in one go: are the kernels right, how fast are they, how fast is the whole model.

    python -m benchmarks.gpu --out benchmarks/results/h200.json [--minutes 8] [--tiny]

The JSON is written anew as each phase ends, a table of it, in a .txt beside it, at the end. A phase that fails is
recorded and the others go on; what was not measured is absent. The card's settings are left alone. `--tiny` runs all
phases on tiny shapes, also without a GPU in a process started with TRITON_INTERPRET=1: that proves the road, its times
mean nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import triton

from benchmarks.gpu.answers import check_answers
from benchmarks.gpu.bandwidth import measure_bandwidth
from benchmarks.gpu.checks import check_kernels
from benchmarks.gpu.collective import exercise_collectives
from benchmarks.gpu.full_model import FullModel
from benchmarks.gpu.invariance import measure_invariance
from benchmarks.gpu.loading import measure_loading
from benchmarks.gpu.long_context import measure_long_context
from benchmarks.gpu.plans import full_plan, tiny_plan
from benchmarks.gpu.session import Session
from benchmarks.gpu.table import lines
from benchmarks.gpu.timings import time_kernels
from kernels import native


def main() -> int:
    """Command line; 1 where something was wrong or missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing new is begun")
    parser.add_argument("--seed", type=int, help="of all random inputs; default: the time, and written down")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on whatever device there is")
    parser.add_argument("--only", nargs="+", default=[], metavar="PHASE", help="these phases alone")
    options = parser.parse_args()
    is_cuda = torch.cuda.is_available()
    if not is_cuda and not options.tiny:
        parser.error("no CUDA device; --tiny with TRITON_INTERPRET=1 runs the phases without one")
    if not is_cuda and not triton.knobs.runtime.interpret:
        parser.error("--tiny: without a CUDA device, start the process with TRITON_INTERPRET=1")
    if is_cuda and triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: the interpreter would be measured, not the device")
    if not is_cuda:
        from tests.kernels.interpreter import repair

        repair()
        torch.use_deterministic_algorithms(True)  # fills what `torch.empty` makes with NaN: nothing may depend on it
    native.use("triton")
    session = Session(
        out=options.out,
        device=torch.device("cuda" if is_cuda else "cpu"),
        tiny=options.tiny,
        seed=time.time_ns() % 2**31 if options.seed is None else options.seed,
        deadline_s=time.monotonic() + 60 * options.minutes,
    )
    is_ok = _run(session, options.only)
    table = "\n".join(lines(session.report)) + "\n"
    options.out.with_suffix(".txt").write_text(table, encoding="utf-8")
    print(table, end="")
    return 0 if is_ok else 1


def _run(session: Session, only: list[str]) -> bool:
    """All phases: first what tells whether the rest means anything, last what may be cut short."""
    session.describe()
    model = FullModel(session, tiny_plan() if session.tiny else full_plan())
    phases = {
        "bandwidth": lambda: measure_bandwidth(session),
        "checks": lambda: check_kernels(session),
        "collectives": lambda: exercise_collectives(session),
        "model": model.build,
        "decode": model.decode,
        "breakdown": model.breakdown,
        "verify": model.verify,
        "steps": model.steps,
        "prefill": model.prefill,
        "long_context": lambda: measure_long_context(session, model),
        "batch_invariant": lambda: measure_invariance(session, model),
        "release": model.release,
        "loading": lambda: measure_loading(session, model.plan),
        "kernels": lambda: time_kernels(session),
        "answers": lambda: check_answers(session),
    }
    return all([session.phase(name, run) for name, run in phases.items() if name in only or not only])


if __name__ == "__main__":
    raise SystemExit(main())
