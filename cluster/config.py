"""The configuration tree: a YAML file, then SIGMOE_ variables, then flags; checked once, here.

This module alone reads the environment. Below it plain frozen dataclasses travel, each with what its room needs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from cluster.config_words import (
    CudaGraphs,
    Device,
    DraftAcceptance,
    Drafter,
    Dtype,
    ExecutorKind,
    Kernels,
    KVDtype,
    Spread,
)

ENV_PREFIX = "SIGMOE_"
_RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # the variable by which Ray tells a job's entry its configuration

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


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSection(_Section):
    """What is served."""

    path: str = Field(min_length=1, description="folder of the checkpoint, readable under this path on every node")
    served_name: str = Field(default="", description="name that clients see; empty: the folder's name")
    dtype: Dtype = Field(
        default=Dtype.AUTO, description="of activations and weights; auto: float32 for a float32 checkpoint"
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
    kv_dtype: KVDtype = Field(
        default=KVDtype.AUTO, description="of the KV cache; auto: that of activations; float8_e4m3: half of bfloat16"
    )
    prefix_cache: bool = Field(default=True, description="keep KV blocks of finished prompts for equal beginnings")
    ageing_s: float = Field(default=10.0, gt=0, description="seconds of waiting that make up for one priority level")
    kernels: Kernels = Field(
        default=Kernels.AUTO, description="auto: Triton on a GPU; on the CPU native where it can be built, else torch"
    )
    # YAML reads a bare `off` as false.
    cuda_graphs: Annotated[CudaGraphs, BeforeValidator(lambda value: "off" if value is False else value)] = Field(
        default=CudaGraphs.AUTO,
        description="record decodes and verifies as CUDA graphs at the start; auto: on a GPU with the Triton kernels",
    )
    graph_sequences: PositiveInt = Field(
        default=64, le=1024, description="sequences of the largest step that is recorded; larger ones run as they are"
    )
    amx: bool = Field(default=True, description="use the matrix tiles of CPUs that have them")
    batch_invariant: bool = Field(
        default=False,
        description="the same bits, and so tokens, of a request whatever runs beside it; slower: docs/performance.md",
    )
    threads_per_rank: PositiveInt | None = Field(
        default=None, description="CPU threads of a rank; null: the cores of its node, shared by its ranks there"
    )

    @model_validator(mode="after")
    def _check_batch_invariance(self) -> Self:
        if self.batch_invariant and self.kernels is Kernels.TORCH:
            raise ValueError("batch_invariant is no promise of the torch kernels; with kernels auto or native it is")
        return self


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
    rank_resource: str = Field(
        default="",
        max_length=100,
        description="a resource of your own of which Ray sets aside one for each rank, such as H20; empty: none",
    )
    memory_per_rank: Bytes | None = Field(
        default=None, description="memory of a rank's device, for --dry-run alone; null: this machine's, shared by all"
    )
    network_interface: str = Field(default="", description="interface for the ranks' collectives; empty: their choice")
    start_timeout_s: float = Field(default=1800.0, gt=0, description="for joining, loading, and each collective")
    max_restarts: int = Field(default=3, ge=0, description="new epochs without a minute of peace before giving up")


class ScalingSection(_Section):
    """How many replicas serve: groups of `cluster.ranks` ranks, each with all the experts. docs/autoscaling.md."""

    min_replicas: int = Field(default=1, ge=0, le=256, description="the fewest; 0: none while there is nothing to do")
    max_replicas: PositiveInt = Field(
        default=1, le=256, description="the most; where it equals min_replicas the number is fixed"
    )
    target_queue_s: float = Field(
        default=1.0, gt=0, description="a sequence that waits longer for a place in a step asks for a replica"
    )
    kv_high: float = Field(default=0.85, gt=0, le=1, description="share of the KV blocks in use that asks for one")
    slo_first_token_s: float | None = Field(
        default=None, gt=0, description="SLO: seconds to a call's first token; null: none"
    )
    slo_token_s: float | None = Field(
        default=None, gt=0, description="SLO: seconds for each further token, on average over an answer; null: none"
    )
    slo_share: float = Field(
        default=0.95, gt=0, le=1, description="share of the last 30 s within the SLO; a smaller one asks for a replica"
    )
    background_counts: bool = Field(
        default=False, description="whether requests of a priority below 0, as batch jobs send, ask for replicas, too"
    )
    up_after_s: float = Field(default=3.0, ge=0, description="how long it must be asked for without a break")
    down_after_s: float = Field(
        default=300.0, ge=0, description="how long fewer replicas must have been enough without a break"
    )
    cool_down_s: float = Field(default=15.0, ge=0, description="rest after each change, of the wish or of what serves")
    idle_to_zero_s: float = Field(
        default=600.0, ge=0, description="with min_replicas 0: time without any request before the last one goes"
    )
    wait_s: float = Field(
        default=900.0, gt=0, description="with min_replicas 0: how long a call waits for the first, unless its deadline"
    )
    drain_s: float = Field(
        default=60.0, ge=0, description="time for the requests of a replica that goes; then they move to another"
    )
    room_timeout_s: float = Field(
        default=1800.0,
        gt=0,
        description="with max_replicas above 1: how long a replica may wait for Ray's autoscaler to bring its nodes",
    )

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        return self


class GatewaySection(_Section):
    """The front door."""

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=50051, ge=0, le=65535, description="port to listen on; 0: any free one")
    tls_cert: str | None = Field(
        default=None, min_length=1, description="PEM file of the port's certificate (and its chain); null: no TLS"
    )
    tls_key: str | None = Field(default=None, min_length=1, description="PEM file of the certificate's key")
    tls_client_ca: str | None = Field(default=None, min_length=1, description="PEM file: who signs clients' own")
    token_path: str | None = Field(default=None, min_length=1, description="file with a token that callers must send")
    metrics_port: PositiveInt | None = Field(
        default=None, le=65535, description="port of GET /metrics for Prometheus, over HTTP; null: not served"
    )
    max_requests: PositiveInt = Field(default=2048, description="calls admitted at the same time")
    resume_timeout_s: float = Field(
        default=60.0, gt=0, description="how long a stream whose rank was lost waits for one that serves"
    )
    drain_s: float = Field(default=2.0, ge=0, description="time that calls under way get when the server stops")

    @model_validator(mode="after")
    def _check_security(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        for key in ("tls_client_ca", "token_path"):
            if self.tls_cert is None and getattr(self, key) is not None:
                raise ValueError(f"{key} needs tls_cert and tls_key")
        return self


class Config(_Section):
    """Everything that `sigmoe serve` can be told."""

    model: ModelSection
    engine: EngineSection = EngineSection()
    speculation: SpeculationSection = SpeculationSection()
    cluster: ClusterSection = ClusterSection()
    scaling: ScalingSection = ScalingSection()
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


def ray_job(environment: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """What Ray says of the job that this process is the entry of (`ray job submit`); None where it is of none."""
    text = (os.environ if environment is None else environment).get(_RAY_JOB)
    return None if text is None else dict(json.loads(text))


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
