from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scheduler.limits import refuse_impossible
from scheduler.request import QueueFull, Request, RequestRefused
from tests.scheduler.world import CONFIG, VOCAB_SIZE, World, asking, request


@pytest.mark.parametrize(
    ("field", "impossible"),
    [
        ("prompt", replace(request("r"), prompt=())),
        ("prompt", replace(request("r"), prompt=(1, VOCAB_SIZE))),
        ("prompt", replace(request("r"), prompt=(1, -1))),
        ("prompt", request("r", length=256)),
        ("resumed", replace(request("r"), resumed=(VOCAB_SIZE,))),
        ("resumed", replace(request("r", length=250), resumed=(1,) * 7)),
        ("resumed", replace(request("r"), resumed=(1,), num_sequences=2)),
        ("sampling.n", replace(request("r"), num_sequences=0)),
        ("sampling.max_tokens", request("r", max_tokens=0)),
        ("sampling.max_tokens", request("r", max_tokens=-1)),
        ("sampling.min_tokens", asking(request("r"), min_tokens=5)),
        ("sampling.min_tokens", asking(request("r"), min_tokens=-1)),
    ],
)
def test_what_can_never_run_is_refused_by_field_and_leaves_no_trace(field: str, impossible: Request) -> None:
    world = World()
    with pytest.raises(RequestRefused) as refused:
        world.engine.add(impossible)
    assert refused.value.field == field
    assert not world.engine.has_work
    world.scheduler.check()


@pytest.mark.parametrize(
    "possible",
    [
        request("r", length=255),
        asking(request("r", length=256, max_tokens=0), num_prompt_logprobs=0),
        asking(request("r"), min_tokens=4),
        replace(request("r", max_tokens=9), resumed=(1, 2)),
        replace(request("r"), prompt=(0, VOCAB_SIZE - 1)),
    ],
)
def test_what_just_fits_is_taken(possible: Request) -> None:
    refuse_impossible(possible, CONFIG)


def test_a_prompt_larger_than_the_pool_is_refused_though_the_context_would_allow_it() -> None:
    small = replace(CONFIG, num_blocks=5)  # 20 positions
    refuse_impossible(request("r", length=19), small)
    with pytest.raises(RequestRefused, match="prompt: has 20 tokens, at most 19 fit"):
        refuse_impossible(request("r", length=20), small)


def test_without_a_vocabulary_only_the_lower_end_is_checked() -> None:
    unbounded = replace(CONFIG, vocab_size=None)
    refuse_impossible(replace(request("r"), prompt=(10**6,)), unbounded)
    for token_id in (-1, 2**31):
        with pytest.raises(RequestRefused, match=f"token id {token_id} at position 0"):
            refuse_impossible(replace(request("r"), prompt=(token_id,)), unbounded)


def test_an_id_in_use_is_refused_and_free_again_afterwards() -> None:
    world = World()
    world.add(request("r"))
    with pytest.raises(RequestRefused, match="request_id: 'r' is already running"):
        world.engine.add(request("r"))
    world.run()
    world.add(request("r"))
    world.run()
    world.assert_outputs()


def test_the_queue_is_bounded_and_takes_more_when_it_has_drained() -> None:
    world = World(replace(CONFIG, max_waiting=3))
    world.add(request("a"), request("b"), request("c"))
    with pytest.raises(QueueFull, match="3 sequences wait already, at most 3 may"):
        world.engine.add(request("d"))
    world.step()
    world.add(request("d"))
    world.run()
    world.assert_outputs()


def test_sequences_kept_back_count_as_waiting() -> None:
    world = World(replace(CONFIG, max_waiting=3))
    world.add(replace(request("a"), num_sequences=3))
    with pytest.raises(QueueFull):
        world.engine.add(request("b"))


@pytest.mark.parametrize("name", ["num_blocks", "block_size", "max_rows_per_step", "max_sequences", "max_context"])
def test_a_configuration_without_room_is_an_error(name: str) -> None:
    changes: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} is 0"):
        replace(CONFIG, **changes)


def test_every_running_sequence_must_have_its_row() -> None:
    with pytest.raises(ValueError, match="max_rows_per_step is 7, must be at least max_sequences"):
        replace(CONFIG, max_rows_per_step=7)
