"""Compile every Triton kernel for sm_90, which needs no GPU, and tell what the compiler made of it.

python -m benchmarks.hopper_builds [--write] [--out FILE] [--jobs N] [BEGINNING_OF_A_NAME...]

`--write` keeps the table in benchmarks/results/hopper-builds.json, which CI compares with what it compiles itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.builds import Build, all_builds
from kernels.launched import Launched

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "hopper-builds.json"
CACHE = ROOT / "build" / "triton-cache"
HOPPER = GPUTarget("cuda", 90, 32)
MAX_SHARED_BYTES = 227 * 1024  # of one block, CUDA programming guide, compute capability 9.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What the compiler says of one build."""

    num_warps: int
    registers: int  # of a thread
    stack_bytes: int  # of a thread; spilled registers lie there
    shared_bytes: int  # of a block
    wgmma: list[str]  # kinds of tensor-core product in its code: shape and types
    before_wait: list[str]  # how it touches memory before the kernels launched earlier have ended: kinds of access

    def faults(self, build: Build) -> list[str]:
        """How it breaks what the build claims."""
        found = []
        if self.stack_bytes and not build.may_spill:
            found.append(f"{self.stack_bytes} bytes of stack, claimed none")
        if self.shared_bytes > MAX_SHARED_BYTES:
            found.append(f"{self.shared_bytes} bytes of shared memory, a block has {MAX_SHARED_BYTES}")
        if self.registers * self.num_warps * 32 > 65536:
            found.append(f"{self.registers} registers in {self.num_warps} warps do not fit")
        if build.is_matrix and not self.wgmma:
            found.append("a matrix kernel without wgmma")
        allowed = {"ld.global"} if build.reads_first else set()
        if set(self.before_wait) - allowed:
            found.append(f"{self.before_wait} before griddepcontrol.wait")
        return found


def compile_build(build: Build) -> Compiled:
    """Compile for sm_90 and read the binary."""
    jitted = build.kernel.jitted if isinstance(build.kernel, Launched) else build.kernel
    names = jitted.arg_names
    signature = {name: build.arguments.get(name, "constexpr") for name in names}
    assert {*build.arguments} | {*build.constants} == set(names), f"{build.name}: not its arguments, which are {names}"
    attributes = {
        (position,): [["tt.divisibility", 16]]
        for position, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in build.multiples_of_16
    }
    source = ASTSource(jitted, signature, dict(build.constants), attributes)
    compiled = triton.compile(source, target=HOPPER, options=dict(build.options))
    registers, stack_bytes = _resources(compiled.asm["cubin"])
    return Compiled(
        num_warps=int(build.options["num_warps"]),
        registers=registers,
        stack_bytes=stack_bytes,
        shared_bytes=compiled.metadata.shared,
        wgmma=sorted(set(re.findall(r"wgmma\.mma_async\.sync\.aligned\.(\S+)", compiled.asm["ptx"]))),
        before_wait=_accesses_before_wait(compiled.asm["ptx"]),
    )


def _accesses_before_wait(code: str) -> list[str]:
    """What touches memory in front of the wait, each kind once; a prefetch to the L2 cache brings no value."""
    before, wait, _ = code.partition("griddepcontrol.wait")
    if not wait:
        return ["no wait"]
    accesses = re.findall(r"(?:ld|st|cp|atom|red)\.\S*(?:global|async)\S*", before)
    return sorted({".".join(access.split(".")[:2]) for access in accesses if ".prefetch.L2" not in access})


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = re.findall(r"REG:(\d+) STACK:(\d+)", told)
    assert len(usage) == 1, f"one kernel was expected: {told}"
    return int(usage[0][0]), int(usage[0][1])


@cache
def _builds() -> dict[str, Build]:
    return all_builds()


def _compile_named(name: str) -> Compiled:
    triton.knobs.cache.dir = str(CACHE)
    return compile_build(_builds()[name])


def compile_all(names: list[str], jobs: int) -> dict[str, Compiled]:
    """Compile the builds of these names in `jobs` processes."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return dict(zip(names, pool.map(_compile_named, names), strict=True))


def main() -> int:
    """Compile, print, and write where that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beginnings", nargs="*", help="only builds whose names begin so")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"keep the table in {TABLE.relative_to(ROOT)}")
    parser.add_argument("--out", type=Path, help="write the table to this file")
    args = parser.parse_args()
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing")
    builds = {name: b for name, b in _builds().items() if name.startswith(tuple(args.beginnings) or "")}
    compiled = compile_all(list(builds), args.jobs)
    faults = [f"{name}: {fault}" for name, build in builds.items() for fault in compiled[name].faults(build)]
    for name, c in compiled.items():
        print(
            f"{name:58s} {c.num_warps:2d} warps {c.registers:4d} registers {c.stack_bytes:4d} B stack "
            f"{c.shared_bytes:7d} B shared  {' '.join(c.wgmma)}"
        )
    table = {
        "triton": triton.__version__,
        "target": "sm_90",
        "builds": {name: asdict(c) for name, c in compiled.items()},
        "faults": faults,
    }
    for path in [*([TABLE] if args.write else []), *([args.out] if args.out else [])]:
        path.write_text(json.dumps(table, indent=1) + "\n")
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
