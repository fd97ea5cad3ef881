"""The result of a load test: what is written as JSON, and all that reports and comparisons read.

Every model refuses unknown keys, so that a file of another schema is an error and not half a report.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

SCHEMA: Literal["sigmoe.loadtest/1"] = "sigmoe.loadtest/1"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Percentile(_Part):
    """One percentile and its 95% confidence interval (order statistics); None: the sample is too small for a bound."""

    percent: float
    value: float
    low: float | None
    high: float | None


class Summary(_Part):
    """One measure over all requests (or gaps) measured; seconds, or tokens."""

    count: int
    mean: float
    deviation: float
    least: float
    most: float
    percentiles: tuple[Percentile, ...]
    edges: tuple[float, ...]  # of the histogram
    counts: tuple[int, ...]


class Counts(_Part):
    """Requests meant to be sent within the measured window, by what became of them; and what lies outside it."""

    measured: int
    ok: int
    failed: dict[str, int]  # by gRPC code
    unfinished: int  # ended by the load test, after the drain or an interrupt
    met_slo: int | None  # None where no SLO was given
    outside: int  # sent before the window began, or as later turns after its end: not measured
    outside_failed: dict[str, int]
    examples: dict[str, str]  # one message for each code


class Rates(_Part):
    """Of the measured window, of all that happened in it; per second unless it is a ratio."""

    window_s: float
    offered: float
    completed: float
    output_tokens: float
    input_tokens: float
    goodput: float | None
    error_ratio: float
    in_flight_start: int  # requests under way when the window began
    in_flight_end: int  # and when it ended
    tokens_per_response: float | None
    tokens_per_verify: float | None
    cached_ratio: float | None  # share of prompt tokens found in the prefix cache


class Timeline(_Part):
    """Bins of equal width over the whole level, ramp and drain included."""

    width_s: float
    sent: tuple[int, ...]
    completed: tuple[int, ...]
    failed: tuple[int, ...]
    output_tokens: tuple[int, ...]
    in_flight: tuple[int, ...]  # at the end of each bin
    ttft_p50: tuple[float | None, ...]  # by the bin of the first token
    ttft_p99: tuple[float | None, ...]


class RankSample(_Part):
    """One rank at one moment."""

    replica: int = 0
    rank: int  # of the replica
    running: int
    waiting: int
    kv_used: float  # share of blocks in use
    kv_cached: float  # share of blocks that the prefix cache can serve again

    @property
    def key(self) -> tuple[int, int]:
        """Which rank it is."""
        return self.replica, self.rank


class ServerSample(_Part):
    """The server at one moment; `expert_tokens` are rows since the sample before."""

    at_s: float
    active_requests: int
    ranks: tuple[RankSample, ...]
    expert_tokens: tuple[int, ...]


class ClientLoad(_Part):
    """What the load test itself cost: share of one core, and how late its event loop was."""

    cpu_share: float
    loop_lag_p50_s: float
    loop_lag_p99_s: float


class Level(_Part):
    """One load."""

    label: str
    load: dict[str, Any]
    schedule: dict[str, Any]
    start_s: float  # of the measured window, on the level's clock
    end_s: float
    is_interrupted: bool
    counts: Counts
    rates: Rates
    measures: dict[str, Summary]
    timeline: Timeline
    server: tuple[ServerSample, ...]
    client: ClientLoad
    warnings: tuple[str, ...] = ()


class Server(_Part):
    """Who was tested."""

    address: str
    version: str
    model: dict[str, Any]
    ranks: tuple[dict[str, Any], ...]
    configuration: dict[str, Any]  # as the server was started with; empty where it does not tell


class Trial(_Part):
    """One rate that a search tried, and whether it kept the objectives."""

    rate: float
    is_kept: bool
    why: str


class Search(_Part):
    """The highest rate that kept the objectives; None where none did."""

    objectives: tuple[str, ...]
    best_rate: float | None
    is_bounded: bool  # whether a rate that failed lies above it
    trials: tuple[Trial, ...]


class Check(_Part):
    """One --fail-if at one level; `value` is None where nothing was measured, which counts as true."""

    expression: str
    level: str
    value: float | None
    is_true: bool


class Document(_Part):
    """Everything about one run."""

    schema_version: Literal["sigmoe.loadtest/1"] = SCHEMA
    label: str
    started: str  # ISO 8601, UTC
    elapsed_s: float
    is_interrupted: bool
    client: dict[str, Any]
    arguments: dict[str, Any]
    server: Server
    workload: dict[str, Any]
    slo: tuple[str, ...]
    levels: tuple[Level, ...]
    search: Search | None = None
    checks: tuple[Check, ...] = ()

    def write(self, path: Path) -> None:
        """As JSON, one line for each level."""
        head = self.model_dump_json(exclude={"levels"})
        levels = ",\n".join(level.model_dump_json() for level in self.levels)
        path.write_text(f'{head[:-1]},\n"levels":[\n{levels}\n]}}\n', encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Document:
        """Raises ValueError naming the file, and the field where it is one of another schema."""
        try:
            return Document.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{path}: is no result of `sigmoe loadtest`: {place or 'JSON'}: {first['msg']}") from None
