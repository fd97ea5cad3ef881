"""A Ray cluster whose machines are made up: Ray's real autoscaler over its fake multi-node provider, on this machine.

Each machine that the autoscaler brings is a real raylet here, with the CPUs of the node type. For tests, and for
trying autoscaling without a cloud; docs/autoscaling.md shows the same by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_HEAD_ID = "f" * 51 + "00000"  # the one that the fake provider takes for the head's
_START_TIMEOUT_S = 120.0
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # by which Ray tells a process the configuration of its job
# Code is used where it lies. All raylets here share one folder for the packages that jobs bring, and each that comes up
# deletes what lies there and unpacks it anew, under processes that just import it. Real machines have a folder each.
_IN_PLACE = {"working_dir": f"local://{Path(__file__).resolve().parent.parent}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeCluster:
    """A running one."""

    address: str
    folder: Path
    environment: dict[str, str]  # of processes that connect to it

    def num_raylets(self) -> int:
        """Machines that are up, the head included."""
        return sum("raylet" in Path(name).name for name in map(_program, self.processes()))

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to it."""
        return [process for process in psutil.process_iter() if _belongs(process, self.folder, self.address)]


def config(gcs_address: str, *, cpus_per_node: int, max_nodes: int, idle_minutes: float) -> dict[str, Any]:
    """What `ray start --autoscaling-config` reads."""
    return {
        "cluster_name": "fake",
        "max_workers": max_nodes,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": idle_minutes,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "disable_node_updaters": True,
            "use_node_id_as_ip": True,  # all its machines have this machine's address
            "gcs_address": gcs_address,
            "head_node_id": _HEAD_ID,
        },
        "auth": {"ssh_user": "none"},
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0},
            "worker": {
                "resources": {"CPU": cpus_per_node, "H20": cpus_per_node, "object_store_memory": 80 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": max_nodes,
            },
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "setup_commands": [],
        "initialization_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@contextmanager
def fake_cluster(*, cpus_per_node: int, max_nodes: int, idle_s: float) -> Iterator[FakeCluster]:
    """Start the head; the autoscaler brings and takes the others. Leaves nothing behind."""
    folder = Path(tempfile.mkdtemp(prefix="sigmoe-fake-"))
    port = _free_port()
    address = f"127.0.0.1:{port}"
    (folder / "autoscaling.json").write_text(
        json.dumps(config(address, cpus_per_node=cpus_per_node, max_nodes=max_nodes, idle_minutes=idle_s / 60))
    )
    environment = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "0",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_AUTH_MODE": "token",
    }
    (folder / "token").write_text(os.urandom(32).hex())
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", "--num-cpus=0"]
    command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={folder / 'ray'}"]
    command += [f"--autoscaling-config={folder / 'autoscaling.json'}", "--disable-usage-stats"]
    command += [f"--object-store-memory={80 * 2**20}"]
    cluster = FakeCluster(
        address=address,
        folder=folder,
        environment={name: value for name, value in environment.items() if "OVERRIDE_NODE_ID" not in name}
        | {_JOB: json.dumps({"runtime_env": _IN_PLACE})},
    )
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_START_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"ray start failed: {done.stdout}{done.stderr}")
        yield cluster
    finally:
        _end(cluster)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run one until Ctrl-C or SIGTERM, and say how to connect to it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        fake_cluster(cpus_per_node=2, max_nodes=3, idle_s=10.0) as cluster,
    ):
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", _JOB):
            print(f"export {name}={shlex.quote(cluster.environment[name])}")
        print(f"cluster.address={cluster.address}  (Ctrl-C or SIGTERM ends the cluster)", flush=True)
        signal.pause()


def _end(cluster: FakeCluster) -> None:
    """Everything of it at once: the autoscaler would bring back what goes alone."""
    deadline_s = time.monotonic() + 30
    while (processes := cluster.processes()) and time.monotonic() < deadline_s:
        for process in processes:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=1)


def _program(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def _belongs(process: psutil.Process, folder: Path, address: str) -> bool:
    try:
        port = address.rpartition(":")[2]  # some of Ray's processes call this machine by another address
        return any(str(folder) in word or word.endswith(f":{port}") for word in process.cmdline())
    except psutil.Error:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
