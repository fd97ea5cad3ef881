"""Drafts in the schedule: they change how many steps it takes, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest

import pytest

from scheduler.draft_costs import DraftedStep
from scheduler.draft_length import DraftLength
from scheduler.request import DraftingState, DraftingStatus, DraftMethod, RequestRefused
from tests.scheduler.world import CONFIG, World, asking, prompt, request

DRAFTING = replace(
    CONFIG, draft_method=DraftMethod.EAGLE3, model_method=DraftMethod.EAGLE3, max_drafts=3, adaptive_drafts=False
)


def finished(world: World) -> World:
    world.run()
    world.assert_outputs()
    return world


def test_right_drafts_yield_one_token_more_than_drafted_each_step() -> None:
    world = World(DRAFTING, draft_skill=1.0)
    world.add(request("a", max_tokens=17))
    finished(world)
    # One token with the prompt, then rounds of four.
    assert [plan.num_rows for plan in world.plans] == [6, 4, 4, 4, 4]
    drafts = world.told["a", 0].drafts
    assert drafts.num_rounds == 4 and drafts.num_committed == 16
    assert drafts.drafted == drafts.accepted == (4, 4, 4) and drafts.rounds_by_length == (0, 0, 4)
    assert world.scheduler.stats().drafts == drafts


def test_wrong_drafts_cost_rows_and_no_token() -> None:
    world = World(DRAFTING, draft_skill=0.0)
    world.add(request("a", max_tokens=9))
    finished(world)
    assert [plan.num_rows for plan in world.plans][:3] == [6, 4, 4]
    drafts = world.told["a", 0].drafts
    assert drafts.accepted == (0, 0, 0) and drafts.num_committed == drafts.num_rounds
    lengths = [len(planned.draft_ids) for plan in world.plans for planned in plan.sequences]
    assert drafts.rounds_by_length == tuple(map(lengths.count, (1, 2, 3))) and lengths[-2:] == [1, 0]


@pytest.mark.parametrize("max_tokens", range(1, 10))
def test_no_round_runs_beyond_the_output(max_tokens: int) -> None:
    world = World(DRAFTING, draft_skill=1.0)
    world.add(request("a", max_tokens=max_tokens))
    finished(world)
    for plan in world.plans:
        for planned in plan.sequences:
            assert planned.output_index + planned.num_logit_rows <= max_tokens
            assert planned.output_index + planned.num_logit_rows + planned.num_proposals <= max_tokens + 3


def test_no_round_runs_beyond_the_context() -> None:
    world = World(replace(DRAFTING, max_context=16), draft_skill=1.0)
    world.add(request("a", length=7, max_tokens=40))
    finished(world)
    assert len(world.told["a", 0].token_ids) == 9
    for plan in world.plans:
        for planned in plan.sequences:
            assert planned.start + len(planned.token_ids) <= 15, "the last token of all needs no row"
            assert len(planned.block_table) * DRAFTING.block_size <= 16


def test_prompts_that_part_at_the_end_of_a_block_share_no_stale_row() -> None:
    world = World(DRAFTING)
    shared = prompt(8)  # two whole blocks: the draft model's last row there depends on what comes next
    for name, tail in (("a", 40), ("b", 41), ("c", 40)):
        asked = replace(request(name, max_tokens=6), prompt=(*shared, tail, 3))
        world.add(asked)
        world.run()
    finished(world)
    assert world.scheduler.stats().prefix_hit_tokens == 4 + 8  # b finds the first block, c what a left


def test_blocks_written_without_the_draft_model_leave_a_sequence_without_drafts() -> None:
    world = World(DRAFTING)
    plain = replace(request("plain", length=9, max_tokens=3), draft_method=DraftMethod.NONE)
    world.add(plain)
    world.run()
    world.add(request("after", length=9, max_tokens=6))
    finished(world)
    told = world.told["after", 0]
    assert told.usage is not None and told.usage.num_cached_tokens == 8 and told.drafts.num_rounds == 0
    assert told.usage.draft_method is DraftMethod.EAGLE3
    assert told.usage.draft_reason == "its beginning was in the prefix cache without the draft model's part"


@pytest.mark.parametrize(("block_size", "num_blocks"), [(4, 6), (1, 22)])
@pytest.mark.parametrize("skill", [0.0, 0.5, 1.0])
def test_drafting_ends_before_anybody_is_preempted(block_size: int, num_blocks: int, skill: float) -> None:
    # Both sequences fit exactly; blocks ahead for drafts would push one of them out.
    config = replace(DRAFTING, block_size=block_size, num_blocks=num_blocks, max_sequences=2, prefix_cache=False)
    world = World(config, draft_skill=skill)
    world.add(request("a", length=4, max_tokens=8), request("b", length=4, max_tokens=8, first=2))
    finished(world)
    assert world.scheduler.stats().num_preemptions == 0


def test_drafts_take_what_the_budget_leaves() -> None:
    world = World(replace(DRAFTING, max_rows_per_step=10), draft_skill=1.0)
    for i in range(8):
        world.add(request(f"r{i}", length=3, max_tokens=12, first=i + 1))
    finished(world)
    assert all(plan.num_rows <= 10 for plan in world.plans)
    assert any(len(plan.sequences) < 10 for plan in world.plans if plan.num_rows == 10)


def test_a_request_caps_and_switches_off_its_drafts() -> None:
    world = World(DRAFTING, draft_skill=1.0)
    world.add(
        replace(request("capped", max_tokens=10), max_drafts=1),
        replace(request("off", max_tokens=10, first=2), draft_method=DraftMethod.NONE),
        replace(request("ngram", max_tokens=24, first=3), draft_method=DraftMethod.NGRAM),
    )
    finished(world)
    counts = {name: told.drafts for (name, _), told in world.told.items()}
    assert len(counts["capped"].drafted) == 1
    assert counts["off"].num_rounds == 0
    assert len(counts["ngram"].drafted) == 3
    why = {
        name: (told.usage.draft_method, told.usage.draft_reason) for (name, _), told in world.told.items() if told.usage
    }
    assert why == {
        "capped": (DraftMethod.EAGLE3, "k=3: fixed"),
        "off": (DraftMethod.NONE, ""),
        "ngram": (DraftMethod.NGRAM, "k=3: fixed"),
    }


def test_every_method_is_told_of_by_itself() -> None:
    world = World(DRAFTING, draft_skill=1.0)
    (unused,) = world.scheduler.stats().drafting
    assert unused == DraftingStatus(method=DraftMethod.EAGLE3, state=DraftingState.OFF)
    looked_up = replace(request("ngram", max_tokens=24, first=3), draft_method=DraftMethod.NGRAM, max_drafts=2)
    world.add(looked_up)
    finished(world)
    world.add(request("eagle3", max_tokens=10))
    finished(world)
    stats = world.scheduler.stats()
    assert [(one.method, one.state, one.length) for one in stats.drafting] == [
        (DraftMethod.EAGLE3, DraftingState.FIXED, 3),
        (DraftMethod.NGRAM, DraftingState.FIXED, 3),
    ]
    for one in stats.drafting:
        assert one.counts == world.told[one.method.value, 0].drafts and one.counts.num_rounds > 0
    assert stats.drafts.num_rounds == sum(one.counts.num_rounds for one in stats.drafting)
    places = zip_longest(*(one.counts.drafted for one in stats.drafting), fillvalue=0)
    assert stats.drafts.drafted == tuple(map(sum, places)) and len(stats.drafts.drafted) == 3


def test_nothing_is_told_where_nothing_drafts() -> None:
    world = World(CONFIG)
    world.add(request("a"))
    assert finished(world).scheduler.stats().drafting == ()


def test_what_is_not_loaded_is_refused() -> None:
    world = World(DRAFTING)
    with pytest.raises(RequestRefused, match="draft_method: mtp is not loaded"):
        world.scheduler.add(replace(request("a"), draft_method=DraftMethod.MTP))
    with pytest.raises(RequestRefused, match="max_drafts: is -1"):
        world.scheduler.add(replace(request("a"), max_drafts=-1))
    with pytest.raises(ValueError, match="draft_method is mtp"):
        replace(CONFIG, draft_method=DraftMethod.MTP)


def test_stops_inside_a_round_end_the_sequence_there() -> None:
    plain = World(replace(CONFIG, prefix_cache=False))
    plain.add(request("a", max_tokens=12))
    output = finished(plain).told["a", 0].token_ids
    for stop in range(1, len(output)):
        if output[stop] in output[:stop]:
            continue
        world = World(DRAFTING, draft_skill=1.0)
        world.add(asking(request("a", max_tokens=12), stop_token_ids=(output[stop],)))
        finished(world)
        told = world.told["a", 0]
        assert told.token_ids == output[: stop + 1]
        assert told.usage is not None and told.usage.num_output_tokens == stop + 1


def test_what_the_controller_hears_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens behind a stop are none that drafting brought; a sequence at its prompt lives, and does not decode."""
    plain = World(replace(CONFIG, prefix_cache=False))
    plain.add(request("a", max_tokens=12))
    output = finished(plain).told["a", 0].token_ids
    steps: list[DraftedStep] = []
    monkeypatch.setattr(DraftLength, "observe_step", lambda control, step: steps.append(step))
    monkeypatch.setattr(DraftLength, "is_listening", True)
    config = replace(DRAFTING, adaptive_drafts=True, max_rows_per_step=8, prefix_cache=False)
    for stop in range(4, len(output)):
        steps.clear()
        world = World(config, draft_skill=1.0)
        world.add(asking(request("a", max_tokens=12), stop_token_ids=(output[stop],)))
        world.add(request("b", length=30, max_tokens=1, first=2))
        finished(world)
        told = world.told["a", 0]
        # The first token comes with the prompt.
        assert sum(step.num_tokens for step in steps) == len(told.token_ids) - 1
        assert sum(step.num_prompt_rows for step in steps) == 6 + 30
        assert sum(step.num_starting for step in steps) == sum(
            len(planned.token_ids) > planned.num_logit_rows for plan in world.plans for planned in plan.sequences
        )


def test_sequences_at_their_prompts_are_live(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    begin_step = DraftLength.begin_step

    def spy(control: DraftLength, num_decodes: int, *others: object, num_live: int) -> None:
        seen.append((num_decodes, num_live))
        begin_step(control, num_decodes, *others, num_live=num_live)  # type: ignore[arg-type]

    monkeypatch.setattr(DraftLength, "begin_step", spy)
    world = World(replace(DRAFTING, adaptive_drafts=True, max_rows_per_step=8))
    world.add(request("a", max_tokens=60), request("b", length=30, max_tokens=12, first=2))
    finished(world)
    assert (1, 2) in seen and (2, 2) in seen and max(seen) == (2, 2)


def test_the_group_is_told_how_often_the_draft_model_runs() -> None:
    world = World(DRAFTING)
    world.add(request("a", max_tokens=12))
    finished(world)
    for plan in world.plans:
        assert plan.num_draft_passes == max(1, *(planned.num_proposals for planned in plan.sequences))
    silent = World(replace(DRAFTING, draft_method=DraftMethod.NONE))
    silent.add(request("a", max_tokens=12))
    assert {plan.num_draft_passes for plan in finished(silent).plans} == {0}


def test_a_head_that_is_never_right_is_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    world = World(replace(DRAFTING, max_context=2000, num_blocks=600), draft_skill=0.0)
    world.add(request("a", max_tokens=700))
    finished(world)
    stats = world.scheduler.stats()
    (told,) = stats.drafting
    assert (told.length, told.state) == (0, DraftingState.BROKEN) and "draft model must be wrong" in told.reason
    usage = world.told["a", 0].usage
    assert usage is not None and usage.draft_reason == told.reason
    assert [record.message.split()[0] for record in caplog.records] == ["event=drafting_off"]
    assert stats.drafts.num_rounds <= 202
    assert world.plans[-1].num_draft_passes == 0


def test_a_look_up_that_is_never_right_may_be_right_on_other_text(caplog: pytest.LogCaptureFixture) -> None:
    config = replace(DRAFTING, draft_method=DraftMethod.NGRAM, max_context=2000, num_blocks=600)
    world = World(config, draft_skill=0.0)
    world.add(request("a", max_tokens=700))
    finished(world)
    (told,) = world.scheduler.stats().drafting
    assert (told.length, told.state) == (3, DraftingState.FIXED)
    assert not caplog.records
