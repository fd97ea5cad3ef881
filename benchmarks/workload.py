"""The three loads that every engine is measured with, and what a run of one yields."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`num_requests` prompts of `prompt_tokens` random ids each, `output_tokens` generated, all sent at once."""

    name: str
    num_requests: int
    prompt_tokens: int
    output_tokens: int

    def prompts(self, vocab_size: int, seed: int) -> list[tuple[int, ...]]:
        """Token ids; a new seed for each run, so that no run finds another's prefixes in the cache."""
        draw = random.Random(f"{self.name}/{seed}")
        return [tuple(draw.randrange(vocab_size) for _ in range(self.prompt_tokens)) for _ in range(self.num_requests)]

    @property
    def counted_tokens(self) -> int:
        """Tokens by which the rate is computed: outputs where there are several, else prompt tokens."""
        per_request = self.output_tokens if self.output_tokens > 1 else self.prompt_tokens
        return self.num_requests * per_request


# The loads of the published reference figures: 16-token prompts with 128 out, and 8 prompts of 1,024.
WORKLOADS = (
    Workload(name="decode_batch_1", num_requests=1, prompt_tokens=16, output_tokens=128),
    Workload(name="decode_concurrency_32", num_requests=32, prompt_tokens=16, output_tokens=128),
    Workload(name="prefill_8x1024", num_requests=8, prompt_tokens=1024, output_tokens=1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens per second of one workload over several runs."""

    workload: str
    median: float
    best: float
    worst: float
    runs: int

    @staticmethod
    def of(workload: Workload, elapsed_s: list[float]) -> Rate:
        """From the wall-clock seconds of each run."""
        rates = sorted(workload.counted_tokens / seconds for seconds in elapsed_s)
        return Rate(
            workload=workload.name,
            median=rates[len(rates) // 2],
            best=rates[-1],
            worst=rates[0],
            runs=len(rates),
        )
