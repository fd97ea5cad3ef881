"""`sigmoe serve` over Ray, and what must not hurt it: killed ranks, a killed gateway, its own violent death."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sigmoe import Client, Sampling, SigmoeError
from tests.cluster.checkpoint_folder import write_tokenizer_files
from tests.cluster.executor_contract import tiny_config
from tests.cluster.serve_command import Server, serving

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SHIPPED = Path(__file__).parents[2] / "models" / "sigmoe-demo"  # drafts with the head in its folder
DRAFTING = ("--set", "speculation.adaptive=false", "--set", "speculation.debug=true")
PROMPT = [3, 4, 5, 6]
LONG = Sampling(max_tokens=300, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_config().model_dir, tmp_path_factory.mktemp("ray") / "model"))
    write_tokenizer_files(folder)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two ranks that draft, which all tests of this module share: each leaves them serving."""
    with serving(SHIPPED, "--ranks", "2", "--set", "engine.kv_cache_size=32MiB", *DRAFTING) as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def killed(model: Path) -> Server:
    """A server that was killed before the first test: the last of Ray's processes takes a minute to notice."""
    with serving(model, "--ranks", "1") as server:
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    return server


def text(client: Client, draft: str | None = None) -> str:
    return "".join(chunk.text for chunk in client.generate(PROMPT, dataclasses.replace(LONG, draft=draft)))


def all_blocks_are_free(client: Client) -> bool:
    return all(
        rank.running_sequences == 0 and rank.waiting_sequences == 0 and rank.kv_blocks_free == rank.kv_blocks
        for rank in client.cluster().ranks
    )


def test_two_ranks_share_the_experts(server: Server) -> None:
    with server.client() as client:
        cluster = client.cluster()
        assert text(client) == text(client) != ""
    assert [rank.experts for rank in cluster.ranks] == [tuple(range(8)), tuple(range(8, 16))]
    assert len({rank.pid for rank in cluster.ranks}) == 2
    assert server.wait_until(all_blocks_are_free)


@pytest.mark.chaos
def test_a_stream_goes_on_where_it_was_when_a_rank_is_killed(server: Server) -> None:
    """In the middle of rounds of drafts: what is replayed are the tokens that were committed."""
    with server.client() as client:
        expected, got = text(client, "off"), ""
        before = client.cluster()
        for chunk in client.generate(PROMPT, dataclasses.replace(LONG, draft="eagle3")):
            if not got:
                server.child("RankActor").kill()
            got += chunk.text
        after = client.cluster()
    assert got == expected
    assert chunk.usage is not None and chunk.usage.drafts is not None and sum(chunk.usage.drafts.accepted) > 0
    assert after.epoch == before.epoch + 1
    assert after.gateway.resumed_requests == before.gateway.resumed_requests + 1
    assert server.wait_until(all_blocks_are_free)


@pytest.mark.chaos
def test_a_killed_gateway_comes_back_on_its_port_and_its_requests_are_freed(server: Server) -> None:
    with server.client() as client:
        expected = text(client)
        stream = iter(client.generate(PROMPT, Sampling(max_tokens=2000, ignore_eos=True)))
        next(stream)
        server.child("GatewayActor").kill()
        with pytest.raises(SigmoeError):
            for _ in stream:
                pass
    assert server.wait_until(all_blocks_are_free)
    with server.client() as client:
        assert text(client) == expected


def test_an_interrupt_leaves_no_process(model: Path) -> None:
    with serving(model, "--ranks", "2") as server:
        assert server.stop(signal.SIGINT) == 0
        assert not server.orphans()
        assert not server.end()[1]


def test_a_checkpoint_that_ranks_cannot_load_is_one_clear_message(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    server = Server(folder, "--ranks", "2")
    _, err = server.end()
    assert server.process.returncode == 1
    assert err.count("\n") == 1 and "did not start" in err and str(folder) in err
    assert not server.orphans()


@pytest.mark.chaos
def test_a_killed_server_leaves_no_process(killed: Server) -> None:
    assert not killed.orphans()
