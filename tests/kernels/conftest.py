"""Every kernel test runs on each backend that this machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels import native

HAS_AMX = Path("/proc/cpuinfo").exists() and "amx_bf16" in Path("/proc/cpuinfo").read_text()
BACKENDS = ["torch", "native", *(["native+amx"] if HAS_AMX else [])]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels of this process, put back to the default afterwards."""
    native.use(request.param.removesuffix("+amx"), amx=request.param.endswith("+amx"), num_threads=2)
    yield request.param
    native.use("auto")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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
