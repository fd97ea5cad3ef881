"""From the user's configuration to what each room takes."""

from __future__ import annotations

from pathlib import Path

from cluster.autoscale import ScalingPolicy
from cluster.config import Config, ConfigMistake
from cluster.config_words import Drafter, Dtype
from cluster.door import FleetRules
from cluster.gateway_config import GatewayConfig
from cluster.gateway_security import GatewaySecurity
from engine.config import (
    EAGLE3_FOLDER,
    Acceptance,
    EngineConfig,
    GraphConfig,
    GraphUse,
    KernelChoice,
    KVPrecision,
    Precision,
    SpeculationConfig,
)
from model.config import ModelConfig
from scheduler.request import DraftMethod

# The gateway's own bound refuses first, with a retry hint; a request may have so many sequences.
_MAX_SEQUENCES_PER_REQUEST = 64


def precision(config: Config, model: ModelConfig) -> Precision:
    """The dtype that the ranks compute in."""
    if config.model.dtype is Dtype.AUTO:
        return Precision.FP32 if model.torch_dtype == "float32" else Precision.BF16
    return Precision(config.model.dtype.value)


def engine_config(config: Config, model: ModelConfig) -> EngineConfig:
    """What every rank has in common."""
    engine, cluster = config.engine, config.cluster
    return EngineConfig(
        model_dir=str(Path(config.model.path).resolve()),
        precision=precision(config, model),
        device=cluster.device.value,
        group_size=cluster.ranks,
        group_timeout_s=cluster.start_timeout_s,
        kv_bytes=engine.kv_cache_size,
        kv_fraction=engine.kv_fraction,
        kv_precision=KVPrecision(engine.kv_dtype.value),
        block_size=engine.block_size,
        max_rows_per_step=engine.max_rows_per_step,
        max_sequences=engine.max_sequences,
        max_context=config.model.max_context,
        max_waiting=config.gateway.max_requests * _MAX_SEQUENCES_PER_REQUEST,
        prefix_cache=engine.prefix_cache,
        ageing_s=engine.ageing_s,
        kernels=KernelChoice(engine.kernels.value),
        use_amx=engine.amx,
        batch_invariant=engine.batch_invariant,
        num_threads=engine.threads_per_rank,
        graphs=GraphConfig(use=GraphUse(engine.cuda_graphs.value), max_sequences=engine.graph_sequences),
        speculation=speculation(config, model),
    )


def speculation(config: Config, model: ModelConfig) -> SpeculationConfig:
    """How the ranks draft. Raises ConfigMistake for an EAGLE3 head or an MTP layer that is not there."""
    given = config.speculation
    folder = Path(given.draft_path) if given.draft_path else Path(config.model.path) / EAGLE3_FOLDER
    is_there = (folder / "config.json").is_file()
    if given.method is Drafter.AUTO:
        method = DraftMethod.EAGLE3 if is_there else DraftMethod.NONE
    else:
        method = DraftMethod.NONE if given.method is Drafter.OFF else DraftMethod(given.method.value)
    if method is DraftMethod.EAGLE3 and not is_there:
        raise ConfigMistake(f"speculation.method: eagle3 needs a head, and {folder / 'config.json'} is no file")
    if method is DraftMethod.MTP and not model.num_nextn_predict_layers:
        raise ConfigMistake("speculation.method: mtp needs a checkpoint with an MTP layer, and this one has none")
    return SpeculationConfig(
        method=method,
        draft_dir=str(folder.resolve()),
        max_drafts=given.max_drafts,
        adaptive=given.adaptive,
        ngram_longest=given.ngram_longest,
        acceptance=Acceptance(given.acceptance.value),
        ngram_shortest=given.ngram_shortest,
        debug=given.debug,
    )


def scaling_policy(config: Config) -> ScalingPolicy:
    """When the fleet grows and shrinks."""
    given = config.scaling
    return ScalingPolicy(
        min_replicas=given.min_replicas,
        max_replicas=given.max_replicas,
        sequences_per_replica=config.engine.max_sequences * config.cluster.ranks,
        target_queue_s=given.target_queue_s,
        kv_high=given.kv_high,
        slo_share=given.slo_share,
        up_after_s=given.up_after_s,
        down_after_s=given.down_after_s,
        cool_down_s=given.cool_down_s,
        idle_to_zero_s=given.idle_to_zero_s,
    )


def fleet_rules(config: Config) -> FleetRules:
    """How the fleet is run."""
    return FleetRules(
        policy=scaling_policy(config),
        max_restarts=config.cluster.max_restarts,
        drain_s=config.scaling.drain_s,
    )


def _security(config: Config) -> GatewaySecurity:
    """Absolute paths: the gateway's process may have another working directory."""
    gateway = config.gateway
    given = (gateway.tls_cert, gateway.tls_key, gateway.tls_client_ca, gateway.token_path)
    cert, key, client_ca, token = (str(Path(path).resolve()) if path else "" for path in given)
    return GatewaySecurity(cert=cert, key=key, client_ca=client_ca, token=token)


def gateway_config(config: Config, model: ModelConfig) -> GatewayConfig:
    """What the gateway takes."""
    return GatewayConfig(
        host=config.gateway.host,
        port=config.gateway.port,
        security=_security(config),
        metrics_port=config.gateway.metrics_port,
        max_requests=config.gateway.max_requests,
        resume_timeout_s=config.gateway.resume_timeout_s,
        wait_s=0.0 if config.scaling.min_replicas else config.scaling.wait_s,
        slo_first_token_s=config.scaling.slo_first_token_s,
        slo_token_s=config.scaling.slo_token_s,
        background_counts=config.scaling.background_counts,
        model_name=config.model.served_name,
        dtype=precision(config, model).value,
        # Clients may read it: the tree holds no secrets, only paths to where they lie, and must stay so.
        configuration=config.model_dump_json(),
    )
