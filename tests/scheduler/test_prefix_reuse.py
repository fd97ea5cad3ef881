from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.request import Usage
from tests.scheduler.world import CONFIG, ERROR_TOKEN, World, asking, prompt, request


def usage(world: World, request_id: str, index: int = 0) -> Usage:
    found = world.told[request_id, index].usage
    assert found is not None
    return found


@pytest.mark.parametrize(("length", "num_cached"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (30, 28)])
def test_full_blocks_but_the_one_with_the_last_token_are_found(length: int, num_cached: int) -> None:
    world = World()
    world.add(request("first", length))
    world.run()
    world.add(request("second", length))
    world.run()
    assert usage(world, "second").num_cached_tokens == num_cached
    assert world.output("second") == world.output("first")
    world.assert_outputs()


def test_output_is_found_by_the_next_turn_of_a_conversation() -> None:
    world = World()
    world.add(request("turn 1", length=6, max_tokens=11))
    world.run()
    longer = (*prompt(6), *world.output("turn 1"), 5, 6, 7)
    world.add(replace(request("turn 2"), prompt=longer))
    world.run()
    # 17 tokens were known and the last was never computed: four full blocks.
    assert usage(world, "turn 2").num_cached_tokens == 16
    world.assert_outputs()


def test_a_prompt_in_progress_is_shared_as_far_as_it_is_computed() -> None:
    world = World(replace(CONFIG, max_rows_per_step=12))
    world.add(request("first", length=40))
    world.step()
    world.add(request("second", length=40))
    world.run()
    assert usage(world, "second").num_cached_tokens >= 12
    world.assert_outputs()


def test_what_differs_early_is_not_shared_though_the_rest_is_equal() -> None:
    world = World()
    world.add(replace(request("first"), prompt=(1, 2, 3, 4, *prompt(20))))
    world.run()
    world.add(replace(request("second"), prompt=(1, 2, 9, 4, *prompt(20))))
    world.run()
    assert usage(world, "second").num_cached_tokens == 0
    world.assert_outputs()


def test_the_least_recently_used_prefix_is_evicted() -> None:
    world = World(replace(CONFIG, num_blocks=12))
    world.add(request("a", length=17, max_tokens=1, first=1))
    world.run()
    world.add(request("b", length=17, max_tokens=1, first=2))
    world.run()
    world.add(request("a again", length=17, max_tokens=1, first=1))
    world.run()
    world.add(request("c", length=17, max_tokens=1, first=3))
    world.run()
    world.add(request("a once more", length=17, max_tokens=1, first=1))
    world.run()
    assert usage(world, "a again").num_cached_tokens == 16
    assert usage(world, "a once more").num_cached_tokens == 16
    world.add(request("b again", length=17, max_tokens=1, first=2))
    world.run()
    assert usage(world, "b again").num_cached_tokens < 16


def test_switched_off_nothing_is_kept() -> None:
    world = World(replace(CONFIG, prefix_cache=False))
    world.add(request("first", 30))
    world.run()
    world.add(request("second", 30))
    world.run()
    assert usage(world, "second").num_cached_tokens == 0
    assert world.scheduler.stats().num_cached_blocks == 0
    world.assert_outputs()


def test_what_an_erring_sequence_computed_is_not_found() -> None:
    world = World(replace(CONFIG, max_rows_per_step=8))
    poisoned = replace(request("first"), prompt=(*prompt(20), ERROR_TOKEN))
    world.add(poisoned)
    world.run()
    assert world.scheduler.stats().num_cached_blocks == 0
    world.add(replace(poisoned, request_id="second", prompt=prompt(20)))
    world.run()
    assert usage(world, "second").num_cached_tokens == 0


def test_hits_and_queries_are_counted() -> None:
    world = World()
    world.add(request("first", 9))
    world.run()
    world.add(request("second", 9))
    world.run()
    stats = world.scheduler.stats()
    assert (stats.prefix_hit_tokens, stats.prefix_query_tokens) == (8, 18)


def test_siblings_wait_for_the_first_and_find_its_prompt() -> None:
    world = World(replace(CONFIG, max_rows_per_step=8))
    world.add(asking(replace(request("r", length=18), num_sequences=3), temperature=1.0))
    world.step()
    world.step()
    assert len(world.plans[-1].sequences) == 1
    assert world.scheduler.stats().num_waiting == 2
    world.step()
    world.step()
    assert len(world.plans[-1].sequences) == 3, "they need not wait for its end"
    world.run()
    assert [usage(world, "r", index).num_cached_tokens for index in range(3)] == [0, 16, 16]
    assert len({world.output("r", index) for index in range(3)}) == 3
    world.assert_outputs()


def test_without_a_cache_siblings_start_at_once() -> None:
    world = World(replace(CONFIG, prefix_cache=False))
    world.add(asking(replace(request("r"), num_sequences=3), temperature=1.0))
    world.step()
    assert len(world.plans[-1].sequences) == 3
    world.run()
    world.assert_outputs()


def test_scored_prompts_are_computed_whole_and_their_siblings_are_not() -> None:
    world = World(replace(CONFIG, max_rows_per_step=8))
    world.add(request("before", length=18))
    world.run()
    scored = asking(replace(request("r", length=18), num_sequences=2), num_prompt_logprobs=2, num_logprobs=1)
    world.add(scored)
    world.run()
    told = world.told["r", 0]
    assert [usage(world, "r", index).num_cached_tokens for index in range(2)] == [0, 16]
    assert [score.token_id for score in told.prompt_logprobs] == [*scored.prompt[1:]]
    assert all(len(score.top) == 2 for score in told.prompt_logprobs)
    assert [score.token_id for score in told.logprobs] == told.token_ids
    assert world.told["r", 1].prompt_logprobs == []
    world.assert_outputs()


@pytest.mark.parametrize("max_rows", [8, 32])
def test_scores_do_not_depend_on_the_chunks(max_rows: int) -> None:
    scores = []
    for rows in (max_rows, 200):
        world = World(replace(CONFIG, max_rows_per_step=rows))
        world.add(asking(request("r", length=50), num_prompt_logprobs=1))
        world.run()
        scores.append(world.told["r", 0].prompt_logprobs)
    assert scores[0] == scores[1]
    assert len(scores[0]) == 49
