"""How long calls take, as histograms."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Histogram

from cluster.attainment import Attainment
from cluster.sequence_stream import Chunk

_SHORT = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SIZES = tuple(float(2**power) for power in range(18))


class Latencies:
    """Of all calls that stream; `registry` shows them, `attainment` compares them with what was promised."""

    def __init__(
        self,
        registry: CollectorRegistry,
        clock: Callable[[], float],
        attainment: Attainment,
        *,
        counts_background: bool = False,
    ) -> None:
        """`counts_background`: whether to requests of negative priority something was promised, too."""

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"sigmoe_{name}", text, buckets=buckets, registry=registry)

        self.clock = clock
        self.attainment = attainment
        self.counts_background = counts_background
        self.first_token = histogram("time_to_first_token_seconds", "From a call's arrival to its first token.", _LONG)
        self.duration = histogram("request_duration_seconds", "From a call's arrival to its end.", _LONG)
        self.queue = histogram("queue_seconds", "Time that a sequence waited for a place in a step.", _LONG)
        self.output_token = histogram(
            "time_per_output_token_seconds", "Decode time of a sequence, by its tokens after the first.", _SHORT
        )
        self.prompt_tokens = histogram("request_prompt_tokens", "Prompt tokens of a sequence.", _SIZES)
        self.output_tokens = histogram("request_output_tokens", "Tokens generated for a sequence.", _SIZES)


class CallLatency:
    """Of one call, from its making on."""

    def __init__(self, latencies: Latencies, *, is_whole: bool = False, is_background: bool = False) -> None:
        """`is_whole`: the answer comes in one piece, so its first token says nothing."""
        self._latencies = latencies
        self._arrived_s = latencies.clock()
        self._has_token = is_whole
        self._is_promised = latencies.counts_background or not is_background

    def see(self, chunk: Chunk) -> None:
        """A chunk goes to the client."""
        if chunk.token_ids and not self._has_token:
            self._has_token = True
            self._latencies.first_token.observe(self._age_s())
            if self._is_promised:
                self._latencies.attainment.first_token(self._age_s())
        usage = chunk.usage
        if usage is None:
            return
        self._latencies.queue.observe(usage.queue_s)
        self._latencies.prompt_tokens.observe(usage.num_prompt_tokens)
        self._latencies.output_tokens.observe(usage.num_output_tokens)
        if usage.num_output_tokens > 1:
            self._latencies.output_token.observe(usage.decode_s / (usage.num_output_tokens - 1))
            if self._is_promised:
                self._latencies.attainment.token(usage.decode_s / (usage.num_output_tokens - 1))

    def end(self) -> None:
        """The call has ended, in whatever way."""
        self._latencies.duration.observe(self._age_s())

    def _age_s(self) -> float:
        return self._latencies.clock() - self._arrived_s
