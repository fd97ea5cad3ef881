"""An event loop whose clock jumps to the next thing that is due: minutes of load at once, and repeatable."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from sigmoe.errors import SigmoeError
from sigmoe.loadtest.player import Ask
from sigmoe.results import Chunk, Usage

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits, and nothing will ever happen"
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _Jumping()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now_s


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)


def block(seconds: float) -> None:
    """What a busy client does to its own event loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.clock.now_s += seconds


class SimulatedServer:
    """`slots` requests at a time, first come first served; `num_tokens` tokens each, `token_s` apart.

    It does nothing between `stall[0]` and `stall[1]`. `failures` are raised first, one a request.
    """

    def __init__(
        self,
        *,
        slots: int = 1_000_000,
        num_tokens: int = 5,
        token_s: float = 0.01,
        stall: tuple[float, float] = (-1.0, -1.0),
        failures: list[SigmoeError] | None = None,
    ) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._num_tokens = num_tokens
        self._token_s = token_s
        self._stall = stall
        self.failures = failures or []
        self.asked: list[Ask] = []

    async def ask(self, ask: Ask) -> AsyncIterator[Chunk]:
        self.asked.append(ask)
        if self.failures:
            raise self.failures.pop(0)
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        async with self._slots:
            queue_s = loop.time() - begun_s
            for index in range(self._num_tokens):
                await asyncio.sleep(self._token_s)
                if self._stall[0] <= loop.time() < self._stall[1]:
                    await asyncio.sleep(self._stall[1] - loop.time())
                is_last = index == self._num_tokens - 1
                yield Chunk(
                    request_id="r",
                    index=0,
                    text=f"t{index} ",
                    token_ids=(index,),
                    finish_reason="length" if is_last else None,
                    usage=_usage(self._num_tokens, queue_s) if is_last else None,
                )


def _usage(num_tokens: int, queue_s: float) -> Usage:
    return Usage(
        prompt_tokens=7,
        cached_tokens=3,
        output_tokens=num_tokens,
        preemptions=0,
        queue_s=queue_s,
        prefill_s=0.001,
        decode_s=0.002,
    )
