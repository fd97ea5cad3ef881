"""Launches that Triton need not think about again: what was compiled once is found by a short key, and run.

`kernel[grid](...)` of a @triton.jit function binds names, describes every argument, turns all options into a string and
asks the driver about every pointer, at each call. A step that is not a recorded graph makes some 800 launches, and the
host must be done with each before the device is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime.jit import JITFunction

_Tensor = torch.Tensor
_INT32 = 1 << 31  # what is not below it, Triton passes in 64 bits


def hash_callees(jitted: JITFunction[Any]) -> None:
    """Give a function the key in Triton's cache that it has whatever was compiled before.

    Before triton-lang/triton#10494 (3.9 has it, 3.6 does not) a key lacks what those callees refer to that were not
    hashed earlier, and Triton compiles anew what lies in its cache.
    """
    for name in jitted.fn.__code__.co_names:
        callee = jitted.fn.__globals__.get(name)
        if isinstance(callee, JITFunction) and callee.hash is None:
            hash_callees(callee)
            callee.cache_key  # noqa: B018  # hashes it


def launched(kernel: Any) -> Any:
    """A @triton.jit function with the same way to launch it; in Triton's interpreter the function itself."""
    return Launched(kernel) if isinstance(kernel, JITFunction) else kernel


class _Compiled(NamedTuple):
    """What runs a kernel that was compiled one way."""

    run: Callable[..., None]
    function: int
    metadata: Any
    constants: tuple[object, ...]  # launchers want the parameters that are constants, too, but do not read them
    current_stream: Callable[[], int]


_NOTED = _Compiled(run=lambda *_: None, function=0, metadata=None, constants=(), current_stream=lambda: 0)


class Launched:
    """A kernel whose parameters are arguments first, given by position, then constants.

    Triton makes a variant of its own for pointers that 16 does not divide, and for integers that are 1, that 16 divides
    or that need 64 bits. Only what is the same in all that is run without Triton's help; whatever is rare goes its way.
    Hooks on a launch, which are for profilers of Triton's own, are called for a variant's first launch alone.
    """

    def __init__(self, jitted: Any) -> None:
        self.jitted = jitted  # what Triton compiles
        is_constant = [bool(parameter.is_constexpr) for parameter in jitted.params]
        self._num_arguments = is_constant.count(False)
        assert not any(is_constant[: self._num_arguments]), f"{jitted}: a constant stands before an argument"
        self._constants = tuple(parameter.name for parameter in jitted.params)[self._num_arguments :]
        self._compiled: dict[tuple[object, ...], _Compiled] = {}
        self._is_hashed = False

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """As of the kernel itself: what launches that many programs."""
        return partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **named: Any) -> None:
        arguments: list[Any] = []
        key: list[object] = [*named, *named.values(), *args[self._num_arguments :]]
        addresses = device = 0
        for argument in args[: self._num_arguments]:
            kind = type(argument)
            if kind is _Tensor:
                address = argument.data_ptr()
                addresses |= address
                device |= argument.get_device()  # -1 where one is the host's memory, most of which Triton refuses
                arguments.append(address)
                key.append(argument.dtype)
            elif kind is int and -_INT32 <= argument < _INT32:
                arguments.append(argument)
                key.append(1 if argument == 1 else 0 if argument % 16 else 16)
            elif kind is float:
                arguments.append(argument)
                key.append(kind)
            else:
                self._launch_as_triton(grid, args, named)
                return
        if addresses % 16:
            self._launch_as_triton(grid, args, named)
            return
        key.append(device)  # a binary is loaded for one device
        compiled = self._compiled.get(tuple(key))
        if compiled is None:
            self._first_launch(tuple(key), grid, args, named)
            return
        run, function, metadata, constants, current_stream = compiled
        x, y, z = (*grid, 1, 1)[:3]
        run(x, y, z, current_stream(), function, metadata, None, None, None, *arguments, *constants)

    def _launch_as_triton(self, grid: tuple[int, ...], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if not self._is_hashed:
            hash_callees(self.jitted)
            self._is_hashed = True
        return self.jitted[grid](*args, **named)

    def _first_launch(
        self, key: tuple[object, ...], grid: tuple[int, ...], args: tuple[Any, ...], named: dict[str, Any]
    ) -> None:
        """Launch as Triton does, and keep what it compiled."""
        kernel = self._launch_as_triton(grid, args, named)
        if kernel is None:  # this process compiles nothing, it notes what is launched: kernels/ahead.py
            self._compiled[key] = _NOTED
            return
        constants = (*args[self._num_arguments :], *(named[name] for name in self._constants if name in named))
        assert len(constants) == len(self._constants), f"{self.jitted}: arguments by name"
        driver = triton.runtime.driver.active
        self._compiled[key] = _Compiled(
            run=kernel.run,
            function=kernel.function,
            metadata=kernel.packed_metadata,
            constants=constants,
            current_stream=partial(driver.get_current_stream, driver.get_current_device()),
        )
