"""The configuration tree: a YAML file, then SIGMOE_ variables, then flags; checked once, here.

This module alone reads the environment. Below it plain frozen dataclasses travel, each with what its room needs.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

ENV_PREFIX = "SIGMOE_"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[KMGT]i?B|B)", re.IGNORECASE)
_UNITS = {"": 1, "b": 1} | {
    f"{letter}{mid}b": base**power
    for power, letter in enumerate("kmgt", start=1)
    for mid, base in (("", 1000), ("i", 1024))
}


class ConfigMistake(ValueError):
    """A configuration that cannot be used; the message names the field, its value and what is allowed."""


def _size(value: object) -> object:
    """Bytes from a text such as `4 GiB`."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError("a number of bytes or a size such as '4GiB' is")
    return int(float(match[1]) * _UNITS[match[2].lower()])


Bytes = Annotated[PositiveInt, BeforeValidator(_size)]


class Dtype(enum.Enum):
    """Of activations, weights and KV cache."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class ExecutorKind(enum.Enum):
    """Who starts the ranks."""

    RAY = "ray"
    LOCAL = "local"


class Kernels(enum.Enum):
    """Which kernels run."""

    AUTO = "auto"
    NATIVE = "native"
    TORCH = "torch"


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


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(_Section):
    """What is served."""

    path: str = Field(min_length=1, description="folder of the checkpoint, readable under this path on every node")
    served_name: str = Field(default="", description="name that clients see; empty: the folder's name")
    dtype: Dtype = Field(
        default=Dtype.AUTO, description="of activations, weights and KV cache; auto: float32 for a float32 checkpoint"
    )
    max_context: PositiveInt | None = Field(
        default=None, description="tokens of prompt and output together; null: what the checkpoint is meant for"
    )


class EngineSection(_Section):
    """How every rank works."""

    block_size: PositiveInt = Field(default=16, le=4096, description="tokens of a KV block")
    max_rows_per_step: PositiveInt = Field(default=2048, description="token budget of one step")
    max_sequences: PositiveInt = Field(default=256, description="sequences that run at the same time on a rank")
    kv_cache_size: Bytes | None = Field(
        default=None, description="KV cache of a rank, in bytes or as '4GiB'; null: what max_sequences can use"
    )
    kv_fraction: float = Field(
        default=0.5, gt=0, le=1, description="bound of an automatic KV cache: share of the memory left by the weights"
    )
    prefix_cache: bool = Field(default=True, description="keep KV blocks of finished prompts for equal beginnings")
    ageing_s: float = Field(default=10.0, gt=0, description="seconds of waiting that make up for one priority level")
    kernels: Kernels = Field(default=Kernels.AUTO, description="auto: native where they can be built, else torch")
    amx: bool = Field(default=True, description="use the matrix tiles of CPUs that have them")
    threads_per_rank: PositiveInt | None = Field(
        default=None, description="CPU threads of a rank; null: the cores of its node, shared by its ranks there"
    )


class Drafter(enum.Enum):
    """What drafts tokens ahead."""

    AUTO = "auto"
    OFF = "off"
    EAGLE3 = "eagle3"
    MTP = "mtp"
    NGRAM = "ngram"


class SpeculationSection(_Section):
    """Drafting: several tokens a step where a draft model guesses them. Never changes how answers are distributed."""

    # YAML reads a bare `off` as false.
    method: Annotated[Drafter, BeforeValidator(lambda value: "off" if value is False else value)] = Field(
        default=Drafter.AUTO, description="of requests that name none; auto: eagle3 where the model's folder has one"
    )
    draft_path: str = Field(default="", description="folder of the EAGLE3 head; empty: eagle3 in the model's folder")
    max_drafts: int = Field(default=5, ge=0, le=64, description="most tokens drafted at a time for a sequence")
    adaptive: bool = Field(
        default=True, description="draft as many as pay on this machine and text, down to none; else always max_drafts"
    )
    acceptance: DraftAcceptance = Field(
        default=DraftAcceptance.MATCH,
        description="of sampled requests; match: the tokens of plain decoding; rejection: drafts are drawn, more are"
        " accepted, other tokens of the same distribution",
    )
    ngram_longest: PositiveInt = Field(default=4, le=64, description="ngram: last tokens that are looked for earlier")
    ngram_shortest: PositiveInt = Field(default=2, le=64, description="ngram: fewer than these are no match")
    debug: bool = Field(default=False, description="compare the ranks' numbers of collectives at every step")

    @model_validator(mode="after")
    def _check_ngram(self) -> Self:
        if self.ngram_shortest > self.ngram_longest:
            raise ValueError(f"ngram_shortest {self.ngram_shortest} is more than ngram_longest {self.ngram_longest}")
        return self


class ClusterSection(_Section):
    """Where the ranks live."""

    executor: ExecutorKind = Field(
        default=ExecutorKind.RAY, description="ray: actors of a cluster; local: this machine, without Ray"
    )
    ranks: PositiveInt = Field(default=2, le=1024, description="ranks of the group, which share the experts")
    address: str = Field(
        default="local",
        min_length=1,
        description="local: start Ray here and stop it in the end; auto or HOST:PORT: a cluster that runs already",
    )
    spread: Spread = Field(default=Spread.PACK, description="Ray's strategy for the placement group of the ranks")
    device: Device = Field(default=Device.AUTO, description="auto: cuda where the cluster has a GPU for each rank")
    cpus_per_rank: float = Field(default=1.0, ge=0, description="CPUs that Ray sets aside for a rank")
    memory_per_rank: Bytes | None = Field(
        default=None, description="memory of a rank's device, for --dry-run alone; null: this machine's, shared by all"
    )
    network_interface: str = Field(default="", description="interface for the ranks' collectives; empty: their choice")
    start_timeout_s: float = Field(default=1800.0, gt=0, description="for joining, loading, and each collective")
    max_restarts: int = Field(default=3, ge=0, description="new epochs without a minute of peace before giving up")


class GatewaySection(_Section):
    """The front door."""

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=50051, ge=0, le=65535, description="port to listen on; 0: any free one")
    max_requests: PositiveInt = Field(default=2048, description="calls admitted at the same time")
    resume_timeout_s: float = Field(
        default=60.0, gt=0, description="how long a stream whose rank was lost waits for one that serves"
    )
    drain_s: float = Field(default=2.0, ge=0, description="time that calls under way get when the server stops")


class Config(_Section):
    """Everything that `sigmoe serve` can be told."""

    model: ModelSection
    engine: EngineSection = EngineSection()
    speculation: SpeculationSection = SpeculationSection()
    cluster: ClusterSection = ClusterSection()
    gateway: GatewaySection = GatewaySection()


def load(file: Path | None, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Config:
    """Read the tree. `overrides` are `section.key=value`, values in YAML. Raises ConfigMistake.

    Flags go over SIGMOE_SECTION__KEY variables, these over the file. A relative `model.path` in a file is meant from
    the file's folder when it exists there, else from the current folder.
    """
    tree = _read(file) if file is not None else {}
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(ENV_PREFIX):
            path = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            _put(tree, path, _value(value, name), f"environment variable {name}")
    for override in overrides:
        path, separator, value = override.partition("=")
        if not separator:
            raise ConfigMistake(f"{override!r} is not of the form section.key=value")
        _put(tree, path.strip(), _value(value, path), f"{path!r}")
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigMistake(_readable(error)) from None


def keys() -> tuple[str, ...]:
    """Every `section.key`."""
    return tuple(
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key in section_model(field.annotation).model_fields
    )


def section_model(annotation: Any) -> type[BaseModel]:
    """The model of a section of the tree."""
    assert isinstance(annotation, type) and issubclass(annotation, BaseModel), f"{annotation} is no section"
    return annotation


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigMistake(f"{file}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigMistake(f"{file}: is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigMistake(f"{file}: must hold sections ({', '.join(Config.model_fields)}), not {type(tree).__name__}")
    model = tree.get("model")
    if isinstance(model, dict) and isinstance(model.get("path"), str):
        beside = file.parent / model["path"]
        if beside.exists():
            tree = tree | {"model": model | {"path": str(beside.resolve())}}
    return tree


def _put(tree: dict[str, Any], path: str, value: Any, origin: str) -> None:
    section, separator, key = path.partition(".")
    if not separator or section not in Config.model_fields:
        raise ConfigMistake(f"{origin} names no section.key; sections are {', '.join(Config.model_fields)}")
    present = tree.get(section) or {}
    if not isinstance(present, dict):
        raise ConfigMistake(f"{section}: {present!r} is not allowed: keys and values are")
    tree[section] = present | {key: value}


def _value(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigMistake(f"{name}: {text!r} is no YAML value") from None


def _readable(error: ValidationError) -> str:
    return "; ".join(_line(dict(entry)) for entry in error.errors())


def _line(entry: dict[str, Any]) -> str:
    path = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        section, _, _ = path.rpartition(".")
        known = section_model(Config.model_fields[section].annotation).model_fields if section else Config.model_fields
        return f"{path}: unknown key; known are {', '.join(known)}"
    if entry["type"] == "missing":
        hint = " (--model, or model.path in the file)" if path.startswith("model") else ""
        return f"{path}: missing; it has no default{hint}"
    message = str(entry["msg"]).removeprefix("Value error, ")
    return f"{path}: {entry['input']!r} is not allowed: {message[0].lower()}{message[1:]}"
