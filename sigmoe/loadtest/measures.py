"""From what was seen to what is reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from sigmoe.loadtest import statistics
from sigmoe.loadtest.document import Counts, Percentile, Rates, Summary
from sigmoe.loadtest.expressions import Expression
from sigmoe.loadtest.record import UNFINISHED, Record
from sigmoe.loadtest.runner import Run


def measured(run: Run) -> list[Record]:
    """The requests that count: those meant to be sent within the window, however they ended."""
    return [record for record in run.records if _is_within(run, record.intended_s)]


def summaries(records: Iterable[Record]) -> dict[str, Summary]:
    """Every measure that has a value. Latencies are of answered requests; failed ones are counted beside them."""
    answered = [record for record in records if record.is_ok]
    usages = [record.usage for record in answered if record.usage is not None]
    values: dict[str, list[float]] = {
        "ttft": [record.ttft_s for record in answered if record.ttft_s is not None],
        "itl": [gap for record in answered for gap in record.gaps_s],
        "tpot": [record.tpot_s for record in answered if record.tpot_s is not None],
        "e2e": [record.e2e_s for record in answered],
        "queue": [usage.queue_s for usage in usages],
        "prefill": [usage.prefill_s for usage in usages],
        "send_lag": [record.send_lag_s for record in answered],
        "input_tokens": [usage.prompt_tokens for usage in usages],
        "output_tokens": [usage.output_tokens for usage in usages],
    }
    return {name: summary(sample) for name, sample in values.items() if sample}


def summary(sample: Sequence[float]) -> Summary:
    """Of at least one value."""
    ascending = sorted(sample)
    bins = statistics.histogram(ascending)
    estimates = [(percent, statistics.estimate(ascending, percent)) for percent in statistics.PERCENTILES]
    return Summary(
        count=len(ascending),
        mean=statistics.mean(ascending),
        deviation=statistics.deviation(ascending),
        least=ascending[0],
        most=ascending[-1],
        percentiles=tuple(Percentile(percent=p, value=e.value, low=e.low, high=e.high) for p, e in estimates),
        edges=bins.edges,
        counts=bins.counts,
    )


def counts(run: Run, slo: Sequence[Expression]) -> Counts:
    """What became of every request, measured or not."""
    inside = measured(run)
    outside = [record for record in run.records if not _is_within(run, record.intended_s)]
    met = sum(record.is_ok and all(one.is_met_by(record) for one in slo) for record in inside)
    return Counts(
        measured=len(inside),
        ok=sum(record.is_ok for record in inside),
        failed=_failures(inside),
        unfinished=sum(record.code == UNFINISHED for record in inside),
        met_slo=met if slo else None,
        outside=len(outside),
        outside_failed=_failures(outside),
        examples={record.code: record.error[:300] for record in reversed(run.records) if record.error},
    )


def rates(run: Run, slo: Sequence[Expression]) -> Rates:
    """Of everything that happened within the window, whenever its request was sent."""
    window_s = run.end_s - run.start_s
    inside = counts(run, slo)
    responses = [r for record in run.records for r in record.responses if _happens_within(run, r[0])]
    prompts = [
        record.usage.prompt_tokens
        for record in run.records
        if record.usage is not None and record.responses and _happens_within(run, record.responses[0][0])
    ]
    completed = sum(record.is_ok and _happens_within(run, record.ended_s) for record in run.records)
    usages = [record.usage for record in measured(run) if record.is_ok and record.usage is not None]
    drafts = [usage.drafts for usage in usages if usage.drafts is not None]
    num_rounds = sum(draft.rounds for draft in drafts)
    num_prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    num_tokens = sum(tokens for _, tokens in responses)
    per_s = 1 / window_s if window_s > 0 else 0.0
    return Rates(
        window_s=window_s,
        offered=inside.measured * per_s,
        completed=completed * per_s,
        output_tokens=num_tokens * per_s,
        input_tokens=sum(prompts) * per_s,
        goodput=None if inside.met_slo is None else inside.met_slo * per_s,
        error_ratio=(inside.measured - inside.ok) / inside.measured if inside.measured else 0.0,
        in_flight_start=_in_flight(run.records, run.start_s),
        in_flight_end=_in_flight(run.records, run.end_s),
        tokens_per_response=num_tokens / len(responses) if responses else None,
        tokens_per_verify=sum(draft.committed_tokens for draft in drafts) / num_rounds if num_rounds else None,
        cached_ratio=sum(u.cached_tokens for u in usages) / num_prompt_tokens if num_prompt_tokens else None,
    )


def _failures(records: Iterable[Record]) -> dict[str, int]:
    codes = Counter(record.code for record in records if not record.is_ok and record.code != UNFINISHED)
    return dict(sorted(codes.items()))


def _is_within(run: Run, time_s: float) -> bool:
    return run.start_s <= time_s < run.end_s


def _happens_within(run: Run, time_s: float) -> bool:
    """The last answer of a number of requests ends the window, and belongs to it."""
    return run.start_s <= time_s <= run.end_s


def _in_flight(records: Iterable[Record], time_s: float) -> int:
    return sum(record.intended_s < time_s < record.ended_s for record in records)
