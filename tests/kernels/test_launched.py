"""A kernel's repeated launches, on a stand-in for a compiled kernel; what Triton tells apart is asked of Triton."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import BaseBackend

from kernels.launched import Launched, hash_callees, launched

ROOT = Path(__file__).resolve().parent.parent.parent
DEVICE, STREAM = 3, 40


class Jitted:
    """A @triton.jit function of as many arguments and the constants BLOCK and SPLIT, which notes what it is given."""

    fn = staticmethod(lambda: None)  # calls nothing

    def __init__(self, num_arguments: int) -> None:
        arguments = [SimpleNamespace(name=f"a{at}", is_constexpr=False) for at in range(num_arguments)]
        self.params = [*arguments, *(SimpleNamespace(name=name, is_constexpr=True) for name in ("BLOCK", "SPLIT"))]
        self.by_triton: list[tuple[Any, ...]] = []  # grid, arguments, constants and options
        self.past_triton: list[tuple[Any, ...]] = []  # of a compiled kernel: its number, and all that it is run with

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return lambda *args, **named: self._launch(grid, args, named)

    def _launch(self, grid: tuple[int, ...], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        self.by_triton.append((grid, args, named))
        number = len(self.by_triton)

        def run(*given: Any) -> None:
            self.past_triton.append((number, *given))

        return SimpleNamespace(run=run, function=number, packed_metadata="metadata")


@pytest.fixture(autouse=True)
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device and a stream that only a stand-in has."""
    streams = {DEVICE: STREAM}
    stand_in = SimpleNamespace(get_current_device=lambda: DEVICE, get_current_stream=streams.__getitem__)
    monkeypatch.setattr(triton.runtime.driver, "_active", stand_in)


def test_the_second_launch_goes_past_triton() -> None:
    """With addresses for tensors, the constants in their order, no hooks, and the grid of this launch."""
    jitted = Jitted(3)
    kernel = Launched(jitted)
    first, second = torch.zeros(4), torch.zeros(8)
    kernel[(5, 2)](first, 7, 0.5, SPLIT=2, BLOCK=64, num_warps=4)
    assert jitted.by_triton == [((5, 2), (first, 7, 0.5), {"SPLIT": 2, "BLOCK": 64, "num_warps": 4})]
    kernel[(6,)](second, 9, 1.5, SPLIT=2, BLOCK=64, num_warps=4)
    assert len(jitted.by_triton) == 1
    where = (6, 1, 1, STREAM, 1, "metadata", None, None, None)
    assert jitted.past_triton == [(1, *where, second.data_ptr(), 9, 1.5, 64, 2)]


def test_constants_by_position_and_by_name() -> None:
    """They reach the launcher in the order of the parameters, and others are another kernel."""
    jitted = Jitted(1)
    kernel = Launched(jitted)
    for _ in range(2):
        kernel[(1,)](7, 64, SPLIT=2, num_warps=4)
        kernel[(1,)](7, 64, SPLIT=3, num_warps=4)
        kernel[(1,)](7, 32, SPLIT=2, num_warps=4)
        kernel[(1,)](7, 32, SPLIT=2, num_warps=8)
        kernel[(1,)](7, BLOCK=2, SPLIT=32, num_warps=4)
        kernel[(1,)](7, SPLIT=2, BLOCK=32, num_warps=4)
    assert len(jitted.by_triton) == 6
    assert [(run[0], run[-2:]) for run in jitted.past_triton] == [
        (1, (64, 2)),
        (2, (64, 3)),
        (3, (32, 2)),
        (4, (32, 2)),
        (5, (2, 32)),
        (6, (32, 2)),
    ]


def _is_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether Triton makes one variant of both."""
    described = [
        [native_specialize_impl(BaseBackend, value, False, True, True) for value in args] for args in (one, other)
    ]
    return bool(described[0] == described[1])


def test_what_triton_tells_apart_never_shares_a_kernel() -> None:
    """Each pair of values that a kernel may be given, one after the other."""
    whole, halves = torch.zeros(64), torch.zeros(64, dtype=torch.bfloat16)
    tensors = [whole, whole[1:], whole[4:], halves, halves[3:], halves[8:]]
    integers = [0, 1, 2, 16, 17, 2**31 - 1, 2**31, 2**31 + 1, -16, -(2**31), -(2**31) - 1, 2**63]
    others = [0.0, 1.0, 16.0, True, False, None]
    shared = 0
    for one, other in itertools.permutations([*tensors, *integers, *others], 2):
        jitted = Jitted(2)
        kernel = Launched(jitted)
        for value in (one, other):
            kernel[(1,)](value, whole, BLOCK=1, SPLIT=1)
        if jitted.past_triton:
            shared += 1
            assert _is_same((one,), (other,)), f"{one!r} and {other!r}"
    assert shared > 20, "hardly anything goes past Triton"


def test_what_is_rare_goes_through_triton() -> None:
    """Pointers that 16 does not divide, 64-bit integers, and what is neither a tensor nor a number."""
    for value in (torch.zeros(8)[1:], 2**31, True, None, torch.nn.Parameter(torch.zeros(8))):
        jitted = Jitted(1)
        kernel = Launched(jitted)
        for _ in range(2):
            kernel[(1,)](value, BLOCK=1, SPLIT=1)
        assert len(jitted.by_triton) == 2 and not jitted.past_triton, f"{value!r}"


def test_the_stream_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is captured on another stream than the kernel was first launched on."""
    jitted, current = Jitted(1), [STREAM]
    monkeypatch.setattr(triton.runtime.driver.active, "get_current_stream", lambda device: current[0] + device)
    kernel = Launched(jitted)
    kernel[(1,)](7, BLOCK=1, SPLIT=1)
    kernel[(1,)](7, BLOCK=1, SPLIT=1)
    current[0] = 50
    kernel[(1,)](7, BLOCK=1, SPLIT=1)
    assert [run[4] for run in jitted.past_triton] == [STREAM + DEVICE, 50 + DEVICE]


def test_an_argument_after_a_constant_is_refused() -> None:
    jitted = Jitted(2)
    jitted.params.reverse()
    with pytest.raises(AssertionError, match="stands before"):
        Launched(jitted)


def test_where_launches_are_noted_nothing_is_kept_or_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's hook has the launch return None: kernels/ahead.py."""
    jitted = Jitted(1)
    monkeypatch.setattr(jitted, "_launch", lambda *launch: jitted.by_triton.append(launch))
    kernel = Launched(jitted)
    for _ in range(2):
        kernel[(1,)](7, BLOCK=1, SPLIT=1)
    assert len(jitted.by_triton) == 1, "one variant, noted once"


def _innermost() -> None:
    """What a callee calls."""


def _callee() -> None:
    innermost()


def _caller() -> None:
    callee()
    triton.cdiv(1, 2)


innermost, callee = triton.JITFunction(_innermost), triton.JITFunction(_callee)


def test_a_key_in_the_cache_is_made_from_the_inside_out(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    cache_key = triton.JITFunction.cache_key.fget

    def noted(self: Any) -> Any:
        if self.hash is None:
            hashed.append(self.fn.__name__)
        return cache_key(self)

    monkeypatch.setattr(triton.JITFunction, "cache_key", property(noted))
    hash_callees(triton.JITFunction(_caller))
    assert hashed == ["_innermost", "_callee"]


def _nothing() -> None:
    """What is to become a kernel."""


def test_the_interpreter_runs_the_function_itself() -> None:
    is_interpreted = triton.knobs.runtime.interpret
    kernel = triton.jit(_nothing)
    assert (launched(kernel) is kernel) == is_interpreted
    assert isinstance(launched(triton.JITFunction(_nothing)), Launched)


def test_every_kernel_is_launched_so() -> None:
    """A kernel is a jitted function called `..._kernel`."""
    lines = [line for path in sorted((ROOT / "kernels").rglob("*.py")) for line in path.read_text().splitlines()]
    kernels = [
        at for at, line in enumerate(lines) if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    ]
    assert kernels
    missing = [lines[at] for at in kernels if lines[at - 2] != "@launched" or "triton.jit" not in lines[at - 1]]
    assert not missing, f"without @launched: {missing}"
