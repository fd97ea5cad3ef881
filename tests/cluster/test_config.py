from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster import config_docs
from cluster.config import Config, ConfigMistake, keys, load
from cluster.config_words import Device, Dtype, ExecutorKind, Kernels, KVDtype
from cluster.settings import engine_config, fleet_rules, gateway_config, scaling_policy
from engine.config import KernelChoice, Precision
from model.config import ModelConfig
from tests.cluster.checkpoint_folder import write_checkpoint_folder

# Every key is a promise to users: taking one away or renaming it breaks their files.
KEYS = [
    "model.path",
    "model.served_name",
    "model.dtype",
    "model.max_context",
    "engine.block_size",
    "engine.max_rows_per_step",
    "engine.max_sequences",
    "engine.kv_cache_size",
    "engine.kv_fraction",
    "engine.kv_dtype",
    "engine.prefix_cache",
    "engine.ageing_s",
    "engine.kernels",
    "engine.cuda_graphs",
    "engine.graph_sequences",
    "engine.amx",
    "engine.batch_invariant",
    "engine.threads_per_rank",
    *(f"speculation.{key}" for key in ("method", "draft_path", "max_drafts", "adaptive")),
    *(f"speculation.{key}" for key in ("acceptance", "ngram_longest", "ngram_shortest", "debug")),
    "cluster.executor",
    "cluster.ranks",
    "cluster.address",
    "cluster.spread",
    "cluster.device",
    "cluster.cpus_per_rank",
    "cluster.rank_resource",
    "cluster.memory_per_rank",
    "cluster.network_interface",
    "cluster.start_timeout_s",
    "cluster.max_restarts",
    *(f"scaling.{key}" for key in ("min_replicas", "max_replicas", "target_queue_s", "kv_high")),
    *(f"scaling.{key}" for key in ("slo_first_token_s", "slo_token_s", "slo_share", "background_counts")),
    *(f"scaling.{key}" for key in ("up_after_s", "down_after_s", "cool_down_s", "idle_to_zero_s")),
    *(f"scaling.{key}" for key in ("wait_s", "drain_s", "room_timeout_s")),
    "gateway.host",
    "gateway.port",
    *(f"gateway.{key}" for key in ("tls_cert", "tls_key", "tls_client_ca", "token_path")),
    "gateway.metrics_port",
    "gateway.max_requests",
    "gateway.resume_timeout_s",
    "gateway.drain_s",
]


def read(*overrides: str, **environment: str) -> Config:
    return load(None, ["model.path=m", *overrides], environment)


def test_the_keys_are_these() -> None:
    assert list(keys()) == KEYS


def test_flags_go_over_variables_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model: {path: m}\ngateway: {port: 1, host: h}\ncluster: {ranks: 3}\n")
    environment = {"SIGMOE_GATEWAY__PORT": "2", "SIGMOE_CLUSTER__RANKS": "4", "OTHER": "x"}
    config = load(file, ["gateway.port=5"], environment)
    assert (config.gateway.port, config.cluster.ranks, config.gateway.host) == (5, 4, "h")


def test_values_have_their_types() -> None:
    config = read("engine.kv_cache_size=1.5GiB", "engine.kernels=torch", "model.dtype=float32", "cluster.device=cpu")
    assert config.engine.kv_cache_size == 3 * 2**29
    assert config.engine.kernels is Kernels.TORCH
    assert read("engine.kv_dtype=float8_e4m3").engine.kv_dtype is KVDtype.FLOAT8_E4M3
    assert (config.model.dtype, config.cluster.device) == (Dtype.FLOAT32, Device.CPU)
    assert read("engine.kv_cache_size=2GB").engine.kv_cache_size == 2 * 10**9
    assert read().cluster.executor is ExecutorKind.RAY


def test_a_relative_model_path_is_meant_from_the_file_s_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "c.yaml").write_text("model: {path: weights}\n")
    assert load(tmp_path / "c.yaml", (), {}).model.path == str(tmp_path / "weights")
    assert load(tmp_path / "c.yaml", ["model.path=elsewhere"], {}).model.path == "elsewhere"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gateway.port=70000", r"gateway\.port: 70000 is not allowed: .*65535"),
        ("gateway.prot=1", r"gateway\.prot: unknown key; known are host, port"),
        (
            "door.port=1",
            r"'door\.port' names no section\.key; sections are model, engine, speculation, ",
        ),
        ("port=1", r"'port' names no section\.key"),
        ("port", r"'port' is not of the form section\.key=value"),
        ("cluster.executor=slurm", r"cluster\.executor: 'slurm' is not allowed: .*'ray' or 'local'"),
        ("scaling.min_replicas=2", r"scaling: .*min_replicas 2 is more than max_replicas 1"),
        ("gateway.tls_cert=a.pem", r"tls_cert and tls_key belong together"),
        ("gateway.tls_client_ca=a.pem", r"tls_client_ca needs tls_cert and tls_key"),
        ("gateway.token_path=a", r"token_path needs tls_cert and tls_key"),
        ("scaling.slo_share=1.5", r"scaling\.slo_share: 1\.5 is not allowed"),
        ("cluster.ranks=0", r"cluster\.ranks: 0 is not allowed"),
        ("engine.kv_cache_size=much", r"engine\.kv_cache_size: 'much' is not allowed: .*'4GiB'"),
        ("engine.kv_dtype=fp8", r"engine\.kv_dtype: 'fp8' is not allowed: .*'auto' or 'float8_e4m3'"),
        ("engine.kv_fraction=.nan", r"engine\.kv_fraction: nan is not allowed"),
        ("model.path=''", r"model\.path: '' is not allowed"),
        ("gateway.port=[", r"gateway\.port: '\[' is no YAML value"),
    ],
)
def test_a_mistake_is_named_with_its_value_and_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(ConfigMistake, match=message):
        read(override)


def test_the_torch_kernels_promise_no_batch_invariance() -> None:
    assert read("engine.batch_invariant=true").engine.batch_invariant
    with pytest.raises(ConfigMistake, match=r"engine: .*batch_invariant is no promise of the torch kernels"):
        read("engine.batch_invariant=true", "engine.kernels=torch")


def test_an_unknown_variable_is_refused() -> None:
    with pytest.raises(ConfigMistake, match=r"SIGMOE_PORT names no section\.key"):
        read(SIGMOE_PORT="1")


@pytest.mark.parametrize("text", ["- a\n", "model: [", "gateway: 5\nmodel: {path: m}\n"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigMistake):
        load(tmp_path / "c.yaml", ["gateway.port=1"], {})


def test_a_missing_file_or_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigMistake, match=r"nowhere\.yaml: cannot be read"):
        load(tmp_path / "nowhere.yaml", (), {})
    with pytest.raises(ConfigMistake, match=r"model: missing; .*--model"):
        load(None, (), {})


def test_rooms_get_what_they_need(tmp_path: Path) -> None:
    model = ModelConfig.from_dir(write_checkpoint_folder(tmp_path))
    config = read("engine.kernels=native", "gateway.max_requests=10", "cluster.ranks=3", "engine.amx=false")
    assert not scaling_policy(config).is_elastic and gateway_config(config, model).wait_s == 0
    assert scaling_policy(config).sequences_per_replica == 3 * 256
    elastic = read("scaling.min_replicas=0", "scaling.wait_s=7", "scaling.drain_s=3")
    assert scaling_policy(elastic).is_elastic and gateway_config(elastic, model).wait_s == 7
    assert fleet_rules(elastic).drain_s == 3
    engine, gateway = engine_config(config, model), gateway_config(config, model)
    assert (engine.precision, engine.kernels, engine.use_amx) == (Precision.BF16, KernelChoice.NATIVE, False)
    assert engine.group_size == 3
    assert engine.max_waiting >= 10 * 64  # the gateway's bound refuses first
    assert (gateway.max_requests, gateway.dtype) == (10, "bfloat16")
    told = json.loads(gateway.configuration)
    assert {f"{section}.{key}" for section, values in told.items() for key in values} == set(keys())
    assert told["engine"]["kernels"] == "native" and told["cluster"]["ranks"] == 3


def test_every_key_is_documented() -> None:
    page = config_docs.render()
    for key in keys():
        assert f"| {key.partition('.')[2]} |" in page
    assert "None" not in page
