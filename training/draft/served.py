"""Answers from a running server, for a model that is too large for one process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from model.config import ModelConfig
from scheduler.request import SamplingParams
from sigmoe import AsyncClient, InvalidRequest, Sampling

IN_FLIGHT = 256  # requests at a time, as many as fill the batches of a node

_SAID = (
    *("max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


class ServedModel:
    """Asks `sigmoe serve` with token ids, so that its own chat template and tokenizer do not matter."""

    def __init__(self, address: str, folder: Path) -> None:
        """`folder`: the checkpoint whose model it must serve. Raises ValueError for another, SigmoeError for none."""
        self._address = address
        asyncio.run(self._check(ModelConfig.from_dir(folder)))

    async def _check(self, config: ModelConfig) -> None:
        async with AsyncClient(self._address) as client:
            served = await client.model()
        for name, theirs, ours in (
            ("tokens in its vocabulary", served.vocab_size, config.vocab_size),
            ("layers", served.num_layers, config.num_hidden_layers),
            ("experts", served.num_experts, config.num_experts),
        ):
            if theirs != ours:
                raise ValueError(f"--server: {self._address} serves a model of {theirs} {name}, --model has {ours}")

    def answer(self, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[tuple[int, tuple[int, ...]]]:
        """As `AnswersOf.answer`. Raises SigmoeError where the server does not answer."""
        return asyncio.run(self._answer(prompts, sampling))

    async def _answer(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams
    ) -> list[tuple[int, tuple[int, ...]]]:
        # What is not said is as the server's model likes it.
        asked = Sampling(**{name: getattr(sampling, name) for name in _SAID})
        free = asyncio.Semaphore(IN_FLIGHT)

        async def ask(client: AsyncClient, index: int, prompt: Sequence[int]) -> tuple[int, tuple[int, ...]] | None:
            async with free:
                try:
                    completion = await client.generate(prompt, asked, return_token_ids=True, whole=True).result()
                except InvalidRequest:  # too long for this model, say
                    return None
            return index, completion.choices[0].token_ids

        async with AsyncClient(self._address) as client:
            told = await asyncio.gather(*(ask(client, index, prompt) for index, prompt in enumerate(prompts)))
        return [answer for answer in told if answer is not None]
