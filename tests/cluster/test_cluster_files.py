"""The files that make Ray clusters: Ray's own validation, KubeRay's fields, and commands that exist."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import config, settings
from model.config import ModelConfig
from sigmoe.cli import build_parser
from sigmoe.cli import serve as serve_command

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "examples" / "kuberay"

# The fields of ray.io/v1 that KubeRay's API reference names, as far as an example may use them.
RAY_CLUSTER_SPEC = {"rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"}
AUTOSCALER_OPTIONS = {"upscalingMode", "idleTimeoutSeconds", "resources", "image", "env", "envFrom", "volumeMounts"}
HEAD_GROUP_SPEC = {"template", "rayStartParams", "serviceType", "headService", "enableIngress"}
WORKER_GROUP_SPEC = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts"}
RAY_JOB_SPEC = {"entrypoint", "clusterSelector", "submissionMode", "rayClusterSpec", "runtimeEnvYAML"}


def tree(file: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(file.read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture
def elastic() -> dict[str, Any]:
    return tree(ROOT / "ray_config.yaml")


@pytest.fixture
def on_premises() -> dict[str, Any]:
    return tree(ROOT / "examples" / "on-premises" / "ray_config.yaml")


@pytest.fixture
def raycluster() -> tuple[dict[str, Any], dict[str, Any]]:
    cluster, service = yaml.safe_load_all((KUBERAY / "raycluster.yaml").read_text())
    return cluster, service


def prepared(raw: dict[str, Any]) -> dict[str, Any]:
    """What Ray makes of a file, once it has accepted it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    done = prepare_config(copy.deepcopy(raw))
    assert isinstance(done, dict)
    validate_config(done)
    return done


def ray_options(command: str) -> dict[str, str]:
    """Of a `ray start`, each checked to be one that Ray knows."""
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in option.opts}
    given = [word for word in shlex.split(command.partition("ray start")[2])]
    options = {name: value for name, _, value in (word.partition("=") for word in given)}
    assert set(options) <= known, f"ray start knows none of {set(options) - known}"
    return options


def test_rays_launcher_accepts_the_elastic_cluster(elastic: dict[str, Any]) -> None:
    done = prepared(elastic)
    assert done["head_node_type"] == "head"
    head, h20 = done["available_node_types"]["head"], done["available_node_types"]["h20"]
    assert h20["resources"] == {"CPU": 128, "GPU": 8, "H20": 8} and head["resources"]["GPU"] == 0
    assert (h20["min_workers"], h20["max_workers"], head["max_workers"]) == (0, done["max_workers"], 0)


def test_ray_refuses_what_it_does_not_know(elastic: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="'idle_timeout' was unexpected"):
        prepared(elastic | {"idle_timeout": 5})


def test_rays_launcher_accepts_the_machines_that_exist(on_premises: dict[str, Any]) -> None:
    done = prepared(on_premises)
    (kind,) = done["available_node_types"].values()
    assert kind["max_workers"] == len(on_premises["provider"]["worker_ips"])


@pytest.mark.parametrize("name", ["elastic", "on_premises"])
def test_workers_bring_eight_h20_and_the_head_none(name: str, request: pytest.FixtureRequest) -> None:
    raw: dict[str, Any] = request.getfixturevalue(name)
    worker = ray_options(raw["worker_start_ray_commands"][-1])
    assert worker["--num-gpus"] == "8"
    assert json.loads(worker["--resources"]) == {"H20": 8}
    assert worker["--address"] == "$RAY_HEAD_IP:6379"
    head = ray_options(raw["head_start_ray_commands"][-1])
    assert head["--num-gpus"] == "0" and head["--port"] == "6379"
    assert head["--autoscaling-config"] == "~/ray_bootstrap_config.yaml"


@pytest.mark.parametrize("name", ["elastic", "on_premises"])
def test_every_command_runs_what_the_setup_installs(name: str, request: pytest.FixtureRequest) -> None:
    raw: dict[str, Any] = request.getfixturevalue(name)
    assert any("[server]" in command for command in raw["setup_commands"])
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in raw[key]:
            assert re.search(r"~/sigmoe/\.venv/bin/ray (start|stop)", command), command


@pytest.mark.parametrize("name", ["elastic", "on_premises"])
def test_token_and_tls_are_mounted_where_the_start_commands_look(name: str, request: pytest.FixtureRequest) -> None:
    raw: dict[str, Any] = request.getfixturevalue(name)
    assert raw["file_mounts"]["~/sigmoe-secrets"] == "~/sigmoe-secrets"
    environment = (ROOT / "examples" / "ray_environment.sh").read_text()
    paths = re.findall(r'(RAY_\w+)="\$HOME/sigmoe-secrets/([\w.]+)"', environment)
    assert dict(paths) == {
        "RAY_AUTH_TOKEN_PATH": "token",
        "RAY_TLS_CA_CERT": "ca.crt",
        "RAY_TLS_SERVER_CERT": "node.crt",
        "RAY_TLS_SERVER_KEY": "node.key",
    }
    assert "RAY_AUTH_MODE=token" in environment and "RAY_USE_TLS=1" in environment
    assert any("node_certificate.sh ~/sigmoe-secrets" in command for command in raw["setup_commands"])
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert raw[key][-1].startswith(". ~/sigmoe/examples/ray_environment.sh;")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_machine_s_certificate_is_signed_and_names_it(tmp_path: Path) -> None:
    authority = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=sigmoe"]
    subprocess.run(
        [*authority, "-keyout", f"{tmp_path}/ca.key", "-out", f"{tmp_path}/ca.crt"], check=True, capture_output=True
    )
    subprocess.run([ROOT / "examples" / "node_certificate.sh", tmp_path], check=True)
    verify = ["openssl", "verify", "-CAfile", f"{tmp_path}/ca.crt", f"{tmp_path}/node.crt"]
    assert subprocess.run(verify, check=True, capture_output=True, text=True).stdout.endswith("node.crt: OK\n")
    show = ["openssl", "x509", "-in", f"{tmp_path}/node.crt", "-noout", "-ext", "subjectAltName"]
    assert "IP Address:127.0.0.1" in subprocess.run(show, check=True, capture_output=True, text=True).stdout
    assert (tmp_path / "node.key").stat().st_mode & 0o077 == 0


def test_kuberay_s_cluster_has_fields_that_kuberay_knows(raycluster: tuple[dict[str, Any], dict[str, Any]]) -> None:
    cluster, _ = raycluster
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    assert set(spec) <= RAY_CLUSTER_SPEC and set(spec["autoscalerOptions"]) <= AUTOSCALER_OPTIONS
    assert set(spec["headGroupSpec"]) <= HEAD_GROUP_SPEC
    (workers,) = spec["workerGroupSpecs"]
    assert set(workers) <= WORKER_GROUP_SPEC
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (spec["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes strings alone"
        ray_options("ray start " + " ".join(f"--{key}=x" for key in group["rayStartParams"]))
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["resources"]["requests"] == container["resources"]["limits"]
    import ray

    assert spec["rayVersion"] == ray.__version__


def test_kuberay_s_workers_are_h20_and_the_service_finds_the_gateway(
    raycluster: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    cluster, service = raycluster
    (workers,) = cluster["spec"]["workerGroupSpecs"]
    # KubeRay puts the value into a shell command, between the outer quotes.
    assert json.loads(json.loads(workers["rayStartParams"]["resources"].strip("'"))) == {"H20": 8}
    (container,) = workers["template"]["spec"]["containers"]
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == workers["rayStartParams"]["num-gpus"] == "8"
    (head,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    served = {port["targetPort"]: port["port"] for port in service["spec"]["ports"]}
    assert served == {"grpc": ports["grpc"], "metrics": ports["metrics"]}
    assert service["spec"]["selector"]["ray.io/cluster"] == cluster["metadata"]["name"]


def served_by(words: list[str]) -> config.Config:
    """The configuration of a `sigmoe serve` that an example tells to run, with this checkout's folders."""
    args = build_parser().parse_args(words)
    args.config = ROOT / args.config.relative_to("/sigmoe")
    return serve_command.configuration(args)


def test_kuberay_s_job_is_a_command_of_ours(raycluster: tuple[dict[str, Any], dict[str, Any]]) -> None:
    cluster, service = raycluster
    job = tree(KUBERAY / "rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and set(job["spec"]) <= RAY_JOB_SPEC
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    program, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "sigmoe"
    loaded = served_by(words)
    policy = settings.scaling_policy(loaded)
    (workers,) = cluster["spec"]["workerGroupSpecs"]
    assert policy.is_elastic and policy.max_replicas == workers["maxReplicas"]
    assert str(loaded.cluster.ranks) == workers["rayStartParams"]["num-gpus"], "a replica fills a pod"
    assert {loaded.gateway.port, loaded.gateway.metrics_port} == {port["port"] for port in service["spec"]["ports"]}
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = [m["mountPath"] for m in head["containers"][0]["volumeMounts"] if m["name"] == "gateway"]
    security = settings.gateway_config(loaded, ModelConfig.from_dir(ROOT / "examples" / "antangelmed")).security
    assert {Path(path).parent for path in (security.cert, security.key, security.token)} == {Path(mount)}
    assert loaded.model.path == "/models/AntAngelMed" and loaded.cluster.rank_resource == "H20"
    model = ModelConfig.from_dir(ROOT / "examples" / "antangelmed")
    assert settings.engine_config(loaded, model).group_size == 8
