"""`sigmoe serve` with several replicas or none, without Ray and over it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sigmoe import Client, Sampling, SigmoeError
from tests.cluster.checkpoint_folder import write_tokenizer_files
from tests.cluster.executor_contract import tiny_config
from tests.cluster.serve_command import serving

PROMPT = [3, 4, 5, 6]
TWO = ("--ranks", "1", "--set", "scaling.min_replicas=2", "--set", "scaling.max_replicas=2")
TO_ZERO = ("--ranks", "1", "--set", "scaling.min_replicas=0", "--set", "scaling.idle_to_zero_s=0.5")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_config().model_dir, tmp_path / "model"))
    write_tokenizer_files(folder)
    return folder


def text(client: Client, max_tokens: int = 30) -> str:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return client.generate(PROMPT, sampling).result().text


def is_at_zero(client: Client) -> bool:
    return not client.cluster().fleet.replicas


@pytest.mark.slow
def test_replicas_without_ray_serve_and_go_to_zero_and_back(model: Path) -> None:
    with serving(model, "--executor", "local", *TWO) as server, server.client() as client:
        cluster = client.cluster()
        assert [(rank.replica, rank.rank) for rank in cluster.ranks] == [(0, 0), (1, 0)]
        expected = text(client)
        assert server.stop() == 0 and not server.end()[1]
    with serving(model, "--executor", "local", *TO_ZERO) as server, server.client() as client:
        assert server.wait_until(is_at_zero)
        assert text(client) == expected != ""
        kinds = [event.kind for event in client.events()]
        assert kinds[:5] == ["starting", "serving", "scale", "draining", "drained"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_the_other_replica_goes_on_with_a_dead_one_s_streams(model: Path) -> None:
    with serving(model, *TWO) as server, server.client() as client:
        expected, got = text(client, 600), ""
        sampling = Sampling(max_tokens=600, temperature=0.0, ignore_eos=True)
        for chunk in client.generate(PROMPT, sampling):
            if not got:
                busy = [rank for rank in client.cluster().ranks if rank.running_sequences]
                server.note_children()
                next(child for pid, child in server._seen.items() if pid == busy[0].pid).kill()
            got += chunk.text
        assert got == expected
        assert client.cluster().gateway.resumed_requests == 1
        replica = busy[0].replica
        server.wait_until(lambda now: all(one.state == "serving" for one in now.cluster().fleet.replicas))
        told = [event.kind for event in client.events() if event.replica == replica]
        assert told == ["starting", "serving", "lost", "epoch"]
        assert [event.kind for event in client.events() if event.replica == 1 - replica] == ["starting", "serving"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_a_gateway_killed_while_nothing_serves_comes_back_and_brings_a_replica(model: Path) -> None:
    with serving(model, *TO_ZERO) as server:
        server.wait_until(is_at_zero)
        server.child("GatewayActor").kill()

        def knows_its_past(client: Client) -> bool:
            return "gateway_serving" in [event.kind for event in client.events()]

        server.wait_until(knows_its_past)
        with server.client() as client:
            kinds = [event.kind for event in client.events()]
            assert kinds[:2] == ["starting", "serving"] and "gateway_lost" in kinds
            try:
                assert text(client) != ""
            except SigmoeError as error:
                pytest.fail(f"the call that should have waited ended: {error}")
