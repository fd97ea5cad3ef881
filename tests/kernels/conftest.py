"""Every kernel test runs on each backend that this machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels import native

HAS_AMX = Path("/proc/cpuinfo").exists() and "amx_bf16" in Path("/proc/cpuinfo").read_text()
BACKENDS = ["torch", "native", *(["native+amx"] if HAS_AMX else []), "triton"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels of this process, put back to the default afterwards.

    Triton's run on a GPU where there is one, else on the CPU in the interpreter that tests/conftest.py turns on.
    """
    yield from running(request.param)


@pytest.fixture(params=["torch", "triton"])
def gpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `backend`, for what no kernel of the CPU does."""
    yield from running(request.param)


@pytest.fixture
def triton_backend() -> Iterator[str]:
    """As `backend`, for promises of the Triton kernels alone."""
    yield from running("triton")


def running(name: str) -> Iterator[str]:
    """Kernels of a backend, on its device, until the test is over."""
    native.use(name.removesuffix("+amx"), amx=name.endswith("+amx"), num_threads=2)
    on_gpu = name == "triton" and torch.cuda.is_available()
    if name == "triton" and not on_gpu:
        from .interpreter import repair  # with Triton, which takes a second to import

        repair()
    with torch.device("cuda" if on_gpu else "cpu"):
        yield name
    native.use("auto")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator(torch.get_default_device()).manual_seed(0)


# Backends and dtypes in which a row's result promises not to depend on its batch to the last bit; tiles and torch
# do not promise.
EXACT = [("native", torch.float32), ("native", torch.bfloat16), *([("native+amx", torch.float32)] if HAS_AMX else [])]


@pytest.fixture(params=EXACT, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def exact_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """A dtype, on a backend where it is exact."""
    name, dtype = request.param
    native.use("native", amx=name.endswith("+amx"), num_threads=2)
    yield dtype
    native.use("auto")
