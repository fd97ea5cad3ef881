"""The words that keys of the configuration take, where they take only some."""

from __future__ import annotations

import enum


class Dtype(enum.Enum):
    """Of activations and weights."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class KVDtype(enum.Enum):
    """Of keys and values in the cache."""

    AUTO = "auto"
    FLOAT8_E4M3 = "float8_e4m3"


class ExecutorKind(enum.Enum):
    """Who starts the ranks."""

    RAY = "ray"
    LOCAL = "local"


class Kernels(enum.Enum):
    """Which kernels run."""

    AUTO = "auto"
    NATIVE = "native"
    TORCH = "torch"


class CudaGraphs(enum.Enum):
    """Whether decodes and verifies run as CUDA graphs; see `engine.config.GraphUse`."""

    AUTO = "auto"
    OFF = "off"


class DraftAcceptance(enum.Enum):
    """How drafts of sampled requests are verified; see `engine.config.Acceptance`."""

    MATCH = "match"
    REJECTION = "rejection"


class Device(enum.Enum):
    """What a rank computes on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Spread(enum.Enum):
    """How Ray spreads the ranks over nodes."""

    STRICT_PACK = "STRICT_PACK"
    PACK = "PACK"
    SPREAD = "SPREAD"
    STRICT_SPREAD = "STRICT_SPREAD"


class Drafter(enum.Enum):
    """What drafts tokens ahead."""

    AUTO = "auto"
    OFF = "off"
    EAGLE3 = "eagle3"
    MTP = "mtp"
    NGRAM = "ngram"
