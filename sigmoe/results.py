"""What calls return: plain frozen values, independent of the wire format.

```
Stream -> Chunk* -> Completion (all chunks of all sequences, joined)
Score · Model · Cluster (Gateway, Fleet, Rank*) · FleetEvent*
```
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A token at some place; `logprob` is the natural log of its probability in the unmodified distribution."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """The token that stands at a place, and the most likely ones there (most likely first)."""

    token: Candidate
    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafts:
    """What drafting brought. Entry i of `drafted` and `accepted` counts drafts at place i + 1 of a round."""

    rounds: int
    committed_tokens: int
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    rounds_by_length: tuple[int, ...] = ()  # entry i: rounds of i + 1 drafts

    @property
    def tau(self) -> float | None:
        """Tokens that one verification yields; None where there was none."""
        return self.committed_tokens / self.rounds if self.rounds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one sequence cost; times in seconds. Field meanings as in types.proto."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    preemptions: int
    queue_s: float
    prefill_s: float
    decode_s: float
    drafts: Drafts | None = None  # None where nothing was drafted
    draft_method: str = "off"  # as `Sampling.draft` names it
    draft_reason: str = ""
    forward_s: float = 0.0  # this and those below of whole steps, which all sequences of a batch share
    sample_s: float = 0.0
    draft_s: float = 0.0
    extend_s: float = 0.0  # of draft_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What was generated for one sequence since its last chunk."""

    request_id: str
    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One finished sequence."""

    index: int
    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    error: str = ""
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """All sequences of one request, by index. `text` is the first one's."""

    request_id: str
    choices: tuple[Choice, ...]
    prompt_logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """The text of sequence 0."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Log-probabilities of a text: entry i scores token i + 1."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    total_logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Token ids and each token's own text."""

    ids: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The served model."""

    name: str
    architecture: str
    vocab_size: int
    max_context: int
    num_layers: int
    num_experts: int
    num_experts_per_token: int
    dtype: str
    eos_token_ids: tuple[int, ...]
    server_version: str
    uptime_s: float
    draft_model: str  # that is loaded: off, eagle3 or mtp


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayState:
    """The gateway that answered."""

    active_requests: int
    max_requests: int
    ended_requests: dict[str, int]
    resumed_requests: int
    streamed_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """One draft method on one rank. Field meanings as in admin_service.proto."""

    method: str  # as `Sampling.draft` names it
    state: Literal["unknown", "off", "fixed", "learning", "drafting", "resting", "broken"]
    length: int
    reason: str
    drafts: Drafts
    cost_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RankState:
    """One rank: one process, one device. Field meanings as in admin_service.proto."""

    rank: int
    state: Literal["unknown", "starting", "serving", "lost"]
    device: str
    host: str
    pid: int
    experts: tuple[int, ...]
    waiting_sequences: int
    running_sequences: int
    kv_blocks: int
    kv_blocks_free: int
    kv_blocks_cached: int
    kv_block_size: int
    steps: int
    generated_tokens: int
    preemptions: int
    prefix_query_tokens: int
    prefix_hit_tokens: int
    weight_bytes: int
    kv_bytes: int
    expert_tokens: tuple[int, ...]
    kernels: str
    drafts: Drafts
    draft_length: int
    draft_reason: str
    forward_s: float
    sample_s: float
    draft_s: float
    extend_s: float  # of draft_s
    draft_cost_error: float
    drafting: tuple[Drafting, ...] = ()
    replica: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """One replica: a whole expert-parallel group."""

    replica: int
    state: Literal["unknown", "starting", "serving", "recovering", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLoad:
    """What the replicas that serve have to do."""

    serving_replicas: int
    sequences: int
    waiting_sequences: int
    queue_s: float  # wait of the first that waits
    kv_use: float
    attainment: float | None  # share of recent answers within their SLO; None: no SLO, or no answer
    background_sequences: int = 0  # further ones, that ask for no replica but the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The replicas behind a gateway, and how many are wanted."""

    replicas: tuple[ReplicaState, ...] = ()
    wanted: int = 1
    min_replicas: int = 1
    max_replicas: int = 1
    reason: str = ""  # of the number wanted; empty where it is fixed
    load: FleetLoad | None = None  # None where it is fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEvent:
    """Something that happened to the fleet; kinds and figures as in docs/autoscaling.md."""

    id: int
    time: datetime
    kind: str
    replica: int | None
    reason: str
    numbers: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A snapshot of the cluster behind a gateway."""

    model: str
    epoch: int
    gateway: GatewayState
    ranks: tuple[RankState, ...]
    server_version: str
    uptime_s: float
    fleet: Fleet = field(default_factory=Fleet)
    configuration: dict[str, Any] = field(default_factory=dict)  # what the server was started with, every key
