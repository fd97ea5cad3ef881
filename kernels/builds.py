"""Every Triton kernel with every configuration that it is launched with, for the known models.

A kernel's folder lists its own in `builds.py`, from the same functions that choose constants and warps at launch.
`benchmarks.hopper_builds` compiles them all for sm_90, which needs no GPU, and CI compares what came out.
Importing a list imports Triton; nothing that serves imports one.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOM = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One kernel, compiled one way."""

    name: str  # the operation first; unique
    kernel: Any  # the function that is launched
    arguments: Mapping[str, str]  # name -> "*bf16", "i32", "fp32"; all but the constants
    constants: Mapping[str, object]  # name -> value
    options: Mapping[str, int | bool]  # `launch_options` of the launch
    is_matrix: bool = False  # whether its products run on the tensor cores, so that wgmma must appear
    may_spill: bool = False  # claimed otherwise: no bytes of stack
    reads_first: bool = False  # what nobody writes while a model runs, before it waits for earlier kernels
    multiples_of_16: frozenset[str] = field(default_factory=frozenset)  # integer arguments; pointers always are


def kernel_folders() -> list[Path]:
    """The operations that have a Triton kernel."""
    return sorted(path.parent for path in ROOM.glob("*/triton_kernel.py"))


def all_builds() -> dict[str, Build]:
    """The builds of all operations, by name."""
    found: dict[str, Build] = {}
    for folder in kernel_folders():
        for build in importlib.import_module(f"kernels.{folder.name}.builds").builds():
            assert build.name not in found, f"two builds are called {build.name!r}"
            found[build.name] = build
    return found
