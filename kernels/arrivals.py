"""Programs that share a piece of work: whoever ends last does what one alone can, and none waits for another."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def is_last(done: tl.tensor, num_programs: tl.tensor) -> tl.tensor:
    """Whether all other programs that count in `done` have ended; what they wrote may then be read."""
    tl.debug_barrier()  # what all threads wrote comes before the one thread that says so
    return tl.atomic_add(done, 1, sem="acq_rel", scope="gpu") == num_programs - 1
