"""Kernels compiled before anything launches them, by a process that needs no device.

Launches run as they always do, on tensors that have a shape and no memory (torch's device "meta", on which an address
is an offset); Triton's own hook on compiling notes what each would compile and keeps it from doing so. What was noted
is text, so that other processes can compile it; the launches of a later process find it in Triton's cache.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia

from kernels.launched import Launched, hash_callees


class NoDevice:
    """As much of a Triton driver as it takes to know what a launch compiles: a target without a device."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return self._target

    def get_current_device(self) -> int:
        """A number for Triton's tables."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Nothing is launched on it."""
        return 0


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel compiled one way."""

    module: str
    name: str  # of the kernel
    specialisation: str  # as Triton writes it: signature, constants, alignment, options

    @property
    def key(self) -> str:
        """By which Triton tells variants of a kernel apart."""
        return f"{self.module}.{self.name}: {json.loads(self.specialisation)['key']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a variant."""

    variant: Variant
    was_there: bool = False  # in Triton's cache
    error: str = ""


def target_of(capability: tuple[int, int]) -> GPUTarget:
    """What Triton compiles for on a CUDA device of this compute capability."""
    major, minor = capability
    return GPUTarget("cuda", 10 * major + minor, 32)


def compile_for(target: GPUTarget) -> None:
    """Make Triton do without a device, in all that this process does."""
    triton.runtime.driver.set_active(NoDevice(target))


def variants_of(launch: Callable[[], None]) -> list[Variant]:
    """What the launches of a call would compile, each once, in their order. `compile_for` was called before."""
    found: dict[Variant, None] = {}

    def note(*, fn: Any, compile: dict[str, Any], **_: object) -> bool:  # named by Triton
        found[Variant(fn.module, fn.name, compile["specialization_data"])] = None
        return True  # keeps Triton from compiling it

    assert triton.knobs.runtime.jit_cache_hook is None, "somebody notes launches already"
    triton.knobs.runtime.jit_cache_hook = note
    try:
        launch()
    finally:
        triton.knobs.runtime.jit_cache_hook = None
    return list(found)


def compile_variant(variant: Variant) -> Outcome:
    """Put it into Triton's cache, unless it is there. Raises nothing."""
    hits: list[bool] = []
    triton.knobs.compilation.listener = lambda **told: hits.append(told["cache_hit"])
    try:
        kernel = getattr(importlib.import_module(variant.module), variant.name)
        jitted = kernel.jitted if isinstance(kernel, Launched) else kernel
        hash_callees(jitted)
        _compile_launcher(jitted.preload(variant.specialisation))
    except Exception as error:  # whatever it is: the launch itself will meet it again, and say so
        return Outcome(variant=variant, error=f"{type(error).__name__}: {error}")
    finally:
        triton.knobs.compilation.listener = None
    return Outcome(variant=variant, was_there=all(hits))


def _compile_launcher(compiled: Any) -> None:
    """Triton 3.6 has C code of its own for each signature that is launched. Newer releases have one for all.

    It is linked with the driver's library, but needs no device. Where there is none, as when an image is made, each
    signature costs the first start a quarter of a second.
    """
    if not hasattr(nvidia, "make_launcher"):
        return
    try:
        nvidia.libcuda_dirs()
    except (AssertionError, OSError):
        return
    nvidia.CudaLauncher(compiled.src, compiled.metadata)
