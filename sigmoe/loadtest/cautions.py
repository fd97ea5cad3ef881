"""What a reader must know before believing a level's figures."""

from __future__ import annotations

from collections.abc import Iterator

from sigmoe.loadtest.document import ClientLoad, Counts, Rates

_LATE_S = 0.02  # an event loop that is so late at p99 blurs what it measures
_BUSY = 0.9  # of one core
_CACHED = 0.5  # of the prompt tokens
_ENOUGH = 1000  # answers, for a p99.9 that is more than the largest value


def cautions(counts: Counts, rates: Rates, client: ClientLoad) -> Iterator[str]:
    """Sentences, none where all is well."""
    if client.loop_lag_p99_s > _LATE_S or client.cpu_share > _BUSY:
        yield (
            f"the load test itself was busy: {100 * client.cpu_share:.0f}% of a core, its event loop "
            f"{1000 * client.loop_lag_p99_s:.0f} ms late at p99; latencies hold part of that"
        )
    if counts.unfinished:
        yield f"{counts.unfinished} requests were ended by the load test before their answers were complete"
    if counts.ok < counts.measured - counts.unfinished:
        yield f"{counts.measured - counts.unfinished - counts.ok} requests failed; latencies are of the others alone"
    if not counts.measured:
        yield "no request was sent within the measured window"
    elif 0 < counts.ok < _ENOUGH:
        yield f"fewer than {_ENOUGH:,} answers: p99.9 is the largest of them"
    if rates.cached_ratio is not None and rates.cached_ratio > _CACHED:
        yield f"{100 * rates.cached_ratio:.0f}% of the prompt tokens came from the prefix cache"
