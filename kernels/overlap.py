"""A kernel's start overlaps the end of the one before it: programmatic dependent launch (CUDA programming guide).

Every launch allows it (`launch_options`), so every kernel must begin with `await_previous`: one that did not would run
beside what it reads, and one that returned before it would let its own successor run too early. Before it only weights
may be read, which nobody writes while a model runs, and what a kernel wrote whose end the one before has waited for.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

IS_COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def await_previous() -> None:
    """Wait until all that was launched earlier has ended and is visible; the next kernel may begin to wait, too."""
    if IS_COMPILED:
        gdc_wait()
        gdc_launch_dependents()
