"""The server that is tested, and the machine that tests it."""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import sigmoe
from sigmoe import results
from sigmoe.async_client import AsyncClient
from sigmoe.loadtest.document import Server
from sigmoe.loadtest.player import Ask, Target
from sigmoe.loadtest.sampler import Look
from sigmoe.results import Chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """The server: where it is, who it is, and how it is asked."""

    address: str
    target: Target
    look: Look
    model: results.Model
    cluster: results.Cluster


class ClientTarget:
    """A server reached through the SDK."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def ask(self, ask: Ask) -> AsyncIterator[Chunk]:
        """See `Target`. Token ids are asked for, so that each response's tokens can be counted."""
        if ask.prompt is not None:
            stream = self._client.generate(ask.prompt, ask.sampling, return_token_ids=True)
        else:
            stream = self._client.chat(ask.messages, ask.sampling, return_token_ids=True)
        async for chunk in stream:
            yield chunk


def client_facts() -> dict[str, Any]:
    """Where the load test ran."""
    return {
        "version": sigmoe.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


def server_facts(tested: Tested) -> Server:
    """Who was tested; what of a rank changes while it runs is in the samples."""
    kept = ("rank", "device", "host", "experts", "kv_blocks", "kv_block_size", "weight_bytes", "kv_bytes", "kernels")
    return Server(
        address=tested.address,
        version=tested.cluster.server_version,
        model={key: _json(value) for key, value in asdict(tested.model).items() if key != "uptime_s"},
        ranks=tuple({key: _json(getattr(rank, key)) for key in kept} for rank in tested.cluster.ranks),
        configuration=dict(tested.cluster.configuration),
    )


def _json(value: Any) -> Any:
    """As it will be when it is read again: JSON has no tuples."""
    return list(value) if isinstance(value, tuple) else value
