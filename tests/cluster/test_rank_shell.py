"""What happens inside a rank's actor, without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from cluster.frames import decode_deltas, decode_status, encode_request
from cluster.outstanding import Outstanding
from cluster.rank_shell import RankShell, StaleGateway
from scheduler.request import FinishReason, TokenDelta
from tests.cluster.executor_contract import a_request, endings, tiny_config, tokens


@pytest.fixture
def shell() -> Iterator[RankShell]:
    shell = RankShell(0)
    info, failure = shell.build(tiny_config())
    assert info is not None and not failure
    yield shell
    shell.stop(timeout_s=30.0)
    assert shell.ended(30.0) == "stopped"


def collect(shell: RankShell, gateway: str, request_id: str) -> list[TokenDelta]:
    """Everything of one request; what others left must not come."""
    deltas: list[TokenDelta] = []
    while not endings(deltas):
        frame, lost = shell.poll(gateway)
        assert not lost
        deltas += [delta for delta in decode_deltas(frame) if delta.request_id == request_id]
    return deltas


def test_a_gateway_that_attaches_frees_what_an_earlier_one_asked_for(shell: RankShell) -> None:
    shell.attach("first")
    shell.submit("first", encode_request(a_request("endless", max_tokens=50, num_sequences=2)))
    shell.attach("second")
    shell.submit("second", encode_request(a_request("new")))
    assert len(tokens(collect(shell, "second", "new"))) == 6
    stats = decode_status(shell.status()).stats
    assert stats is not None and (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks


def test_calls_of_a_gateway_that_was_replaced_are_void(shell: RankShell) -> None:
    shell.attach("first")
    shell.attach("second")
    with pytest.raises(StaleGateway):
        shell.submit("first", encode_request(a_request("late")))
    with pytest.raises(StaleGateway):
        shell.poll("first")


def test_what_cannot_be_built_is_told_in_one_line() -> None:
    shell = RankShell(0)
    info, failure = shell.build(dataclasses.replace(tiny_config(), model_dir="nowhere"))
    assert info is None and "nowhere" in failure and "\n" not in failure


def test_a_request_is_outstanding_until_all_its_sequences_ended() -> None:
    outstanding = Outstanding()
    outstanding.add(a_request("a", num_sequences=2))
    outstanding.add(a_request("b"))
    end = TokenDelta(request_id="a", sequence_index=0, finish_reason=FinishReason.LENGTH)
    outstanding.settle([TokenDelta(request_id="b", sequence_index=0, token_ids=(1,)), end])
    assert set(outstanding.ids) == {"a", "b"}
    outstanding.settle([end, TokenDelta(request_id="unknown", sequence_index=0, finish_reason=FinishReason.STOP)])
    assert outstanding.ids == ("b",)
