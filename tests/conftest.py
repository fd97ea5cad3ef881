"""Fixtures that several rooms share: tiny models by the names of model-spec §10, and one thread per process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.oracle.tiny_models import TinyModel

# Triton reads it when a kernel is defined, so it stands before any import: without a GPU its interpreter runs the
# kernels on the CPU. The proof that they compile clears it for a process of its own (tests/kernels/test_builds.py).
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from a second thread, and lose much where the cores are busy."""
    torch: Any = sys.modules.get("torch")  # already imported by the tests collected, or not needed by any
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Who reads what nobody wrote gets a wrong answer every time, not now and then."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        yield
        return
    torch.use_deterministic_algorithms(True)  # without them `torch.empty` does not fill what it makes
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """`tiny("B")`: the configuration, its random tensors and an fp32 checkpoint folder; made once per session."""
    from tests.oracle.tiny_models import tiny_model

    made: dict[str, TinyModel] = {}

    def make(name: str) -> TinyModel:
        if name not in made:
            made[name] = tiny_model(name, tmp_path_factory.mktemp(f"tiny_{name}"))
        return made[name]

    return make
