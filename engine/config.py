"""What one rank must know to build its engine. Plain values: they cross process borders, and need no torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from scheduler.request import DraftMethod

EAGLE3_FOLDER = "eagle3"  # of a draft head, in the model's folder unless the configuration says otherwise


class Precision(enum.Enum):
    """The dtype of activations and weights. Routing, softmax and sums are fp32 in either."""

    FP32 = "float32"
    BF16 = "bfloat16"


class KVPrecision(enum.Enum):
    """The dtype of keys and values in the cache, a draft model's included."""

    AUTO = "auto"  # that of the activations
    FP8 = "float8_e4m3"


class KernelChoice(enum.Enum):
    """Which kernels run."""

    AUTO = "auto"  # Triton on a GPU; on the CPU native where they can be built, else torch
    NATIVE = "native"  # or an error
    TORCH = "torch"
    TRITON = "triton"  # on the CPU, too, through the interpreter: for tests


class Acceptance(enum.Enum):
    """How the drafts of sampled requests are made and verified. Greedy requests, and look-up, always match."""

    MATCH = "match"  # the likeliest tokens, accepted while they are what plain decoding draws: output is the same
    REJECTION = "rejection"  # drawn, and accepted by rejection sampling: other tokens of the same distribution


class GraphUse(enum.Enum):
    """Whether decodes and verifies run in fixed shapes, recorded as CUDA graphs."""

    AUTO = "auto"  # on a GPU, with the Triton kernels
    OFF = "off"
    UNRECORDED = "unrecorded"  # in fixed shapes on any device, but without recording: for tests


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphConfig:
    """Which steps run as graphs."""

    use: GraphUse = GraphUse.AUTO
    max_sequences: int = 64  # of a step; larger ones run as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAddress:
    """Where rank 0 keeps the group's store."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """What drafts tokens ahead. The drafts change how many steps an answer takes, never how answers are distributed."""

    method: DraftMethod = DraftMethod.NONE  # of requests that name none; EAGLE3 and MTP also say what is loaded
    draft_dir: str | None = None  # the EAGLE3 head's folder; None: `eagle3` in the model's
    max_drafts: int = 5  # at a time, for one sequence
    adaptive: bool = True  # as many as pay on this machine and text; else always `max_drafts`
    acceptance: Acceptance = Acceptance.MATCH
    ngram_longest: int = 4  # tokens at the end that are looked for earlier
    ngram_shortest: int = 2
    debug: bool = False  # compare the ranks' collectives at each step

    @property
    def drafts_by_default(self) -> bool:
        """Whether requests that say nothing are drafted for."""
        return self.method is not DraftMethod.NONE

    @property
    def draws_drafts(self) -> bool:
        """Whether the draft model draws the drafts of sequences that sample."""
        return self.acceptance is Acceptance.REJECTION and self.loaded.has_kv

    @property
    def loaded(self) -> DraftMethod:
        """The kind of draft model that is loaded, if any."""
        return self.method if self.method.has_kv else DraftMethod.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """One rank of one group.

    The KV cache has `num_blocks` blocks, or else `kv_bytes` bytes, or else what `max_sequences` sequences of
    `max_context` tokens can use, at most `kv_fraction` of the memory that is free once the weights are loaded.
    """

    model_dir: str
    precision: Precision = Precision.BF16
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:<index>"
    rank: int = 0
    group_size: int = 1
    store: StoreAddress | None = None  # for ranks > 0 of a group; rank 0 hosts the store
    epoch: int = 0
    group_timeout_s: float = 600.0  # for joining and for each collective: outlasts the slowest rank's loading
    num_blocks: int | None = None
    kv_bytes: int | None = None
    kv_fraction: float = 0.5
    kv_precision: KVPrecision = KVPrecision.AUTO
    block_size: int = 16
    max_rows_per_step: int = 2048
    max_sequences: int = 256
    max_context: int | None = None  # None: what the checkpoint is meant for
    max_waiting: int = 10_000
    prefix_cache: bool = True
    ageing_s: float = 10.0
    kernels: KernelChoice = KernelChoice.AUTO
    use_amx: bool = True
    batch_invariant: bool = False  # no bit of a row depends on what runs beside it
    num_threads: int | None = None  # None: the machine's cores / group_size
    graphs: GraphConfig = GraphConfig()
    speculation: SpeculationConfig = SpeculationConfig()
