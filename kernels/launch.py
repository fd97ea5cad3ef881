"""What every Triton launch says besides its arguments, in one place so that compiling ahead says the same."""

from __future__ import annotations

from functools import cache


@cache
def launch_options(num_warps: int, num_stages: int = 1) -> dict[str, int | bool]:
    """Options of a launch.

    Products are fused into sums (one rounding): stated, since Triton 3.10 turns its default. For `launch_pdl` see
    kernels/overlap.py.
    """
    return {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True, "launch_pdl": True}


def loads_first(options: dict[str, int | bool]) -> dict[str, int | bool]:
    """The options of a launch that has all its loads in flight at once.

    States how many registers a thread may have, or the compiler saves them and waits for the first loads before it
    issues the last: 64 K of a multiprocessor over the threads of a program, 255 at most.
    """
    return {**options, "maxnreg": min(255, 65536 // (32 * options["num_warps"]))}
