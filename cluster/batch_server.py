"""Who answers the lines of a batch, and the server as one who does."""

from __future__ import annotations

from typing import Protocol

from cluster.batch_format import BatchRequest, LineFault
from cluster.batch_throttle import Load
from sigmoe import AsyncClient, RetryPolicy, Security
from sigmoe.results import Completion


class Answerer(Protocol):
    """All methods are called from one event loop, and raise what `sigmoe.errors` has."""

    async def answer(self, request: BatchRequest) -> Completion:
        """The answer to one line. Raises LineFault, too, for what cannot be sent at all."""
        ...

    async def model_name(self) -> str:
        """The model that answers."""
        ...

    async def load(self) -> Load:
        """How busy it is."""
        ...


class ServerAnswerer:
    """A gateway, through the SDK. Whether to try again is the batch's business."""

    def __init__(self, address: str, priority: int, security: Security | None = None) -> None:
        self._client = AsyncClient(address, retry=RetryPolicy(max_attempts=1), security=security)
        self._priority = priority

    async def answer(self, request: BatchRequest) -> Completion:
        """See `Answerer`."""
        try:
            if request.prompt is None:
                stream = self._client.chat(request.messages, request.sampling, priority=self._priority, whole=True)
            else:
                stream = self._client.generate(request.prompt, request.sampling, priority=self._priority, whole=True)
        except (TypeError, ValueError) as error:
            raise LineFault("invalid_request", "", str(error).removeprefix("sampling.")) from None
        return await stream.result()

    async def model_name(self) -> str:
        """See `Answerer`."""
        return (await self._client.model()).name

    async def load(self) -> Load:
        """See `Answerer`."""
        ranks = (await self._client.cluster()).ranks
        return Load(sum(rank.running_sequences for rank in ranks), sum(rank.waiting_sequences for rank in ranks))

    async def close(self) -> None:
        """End the connection."""
        await self._client.close()
