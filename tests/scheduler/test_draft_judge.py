"""When a draft model is switched off for good, and what must not have that done to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scheduler.draft_judge import DraftJudge
from scheduler.draft_length import DraftLength
from scheduler.request import DraftingState, DraftMethod, SchedulerStats
from tests.scheduler.world import CONFIG, World, asking, request

WRONG = replace(
    CONFIG,
    draft_method=DraftMethod.EAGLE3,
    model_method=DraftMethod.EAGLE3,
    max_drafts=3,
    adaptive_drafts=False,
    max_context=2000,
    num_blocks=600,
)
UNFORESEEABLE = [
    {"temperature": 1.01},
    {"logit_bias": ((5, 1.0),)},
    {"presence_penalty": -100.0},
    {"presence_penalty": 2.1},
    {"frequency_penalty": 0.1},
    {"frequency_penalty": -100.0},
    {"repetition_penalty": 100.0},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
]


def heard(num_requests: int, num_tokens: int, config: Any = WRONG, **sampling: Any) -> SchedulerStats:
    """Of requests one after the other, whose drafts are never right."""
    world = World(config, draft_skill=0.0)
    for number in range(num_requests):
        world.add(asking(request(f"r{number}", max_tokens=num_tokens, first=number + 1), **sampling))
        world.run()
    world.assert_outputs()
    return world.scheduler.stats()


def test_a_head_that_is_never_right_is_switched_off(caplog: pytest.LogCaptureFixture) -> None:
    world = World(WRONG, draft_skill=0.0)
    world.add(*(request(f"r{number}", max_tokens=80, first=number + 1) for number in range(8)))
    world.run()
    world.assert_outputs()
    stats = world.scheduler.stats()
    (told,) = stats.drafting
    assert (told.length, told.state) == (0, DraftingState.BROKEN) and "draft model must be wrong" in told.reason
    usage = world.told["r7", 0].usage
    assert usage is not None and usage.draft_reason == told.reason
    assert [record.message.split()[0] for record in caplog.records] == ["event=drafting_off"]
    assert stats.drafts.num_rounds < 220
    assert world.plans[-1].num_draft_passes == 0


def test_one_request_condemns_no_head(caplog: pytest.LogCaptureFixture) -> None:
    """Nor do several of its sequences; eight requests do, however much each of them brings."""
    world = World(WRONG, draft_skill=0.0)
    world.add(replace(request("many", max_tokens=300), num_sequences=8), request("long", max_tokens=900, first=2))
    world.run()
    world.assert_outputs()
    assert world.scheduler.stats().drafts.num_rounds > 2000
    for number in range(6):
        assert world.scheduler.stats().drafting[0].length == 3 and not caplog.records
        world.add(request(f"r{number}", max_tokens=60, first=number + 3))
        world.run()
    assert world.scheduler.stats().drafting[0].length == 0


@pytest.mark.parametrize(("num_accepted", "is_wrong"), [(10, False), (9, True)])
def test_two_hundred_rounds_of_eight_requests_decide(num_accepted: int, is_wrong: bool) -> None:
    judge = DraftJudge()
    for _ in range(2):  # windows; what one request has in the first is forgotten in the second
        verdicts = [judge.condemns(f"r{number % 8}", int(number < num_accepted)) for number in range(200)]
        assert verdicts == [False] * 199 + [is_wrong]
    assert not any(judge.condemns(f"r{number % 7}", 0) for number in range(10_000))


@pytest.mark.parametrize("sampling", UNFORESEEABLE, ids=str)
def test_text_that_no_head_can_foresee_condemns_none(sampling: dict[str, Any]) -> None:
    assert heard(10, 60, **sampling).drafting[0].length == 3


@pytest.mark.parametrize(
    "sampling", [{"temperature": 1.0}, {"repetition_penalty": 1.05}, {"presence_penalty": 1.5}], ids=str
)
def test_usual_settings_show_a_wrong_head(sampling: dict[str, Any]) -> None:
    assert heard(10, 60, **sampling).drafting[0].length == 0


@pytest.mark.parametrize("min_tokens", [0, 60])
def test_text_that_may_not_end_condemns_no_head(min_tokens: int) -> None:
    assert heard(10, 60, min_tokens=min_tokens).drafting[0].length == (3 if min_tokens else 0)


def test_text_behind_its_least_length_tells_as_any() -> None:
    assert heard(10, 60, min_tokens=20).drafting[0].length == 0


@pytest.mark.parametrize(("draft_context", "length"), [(None, 0), (100, 0), (25, 3)])
def test_contexts_that_a_head_was_not_made_for_do_not_condemn_it(draft_context: int | None, length: int) -> None:
    """Prompts of 6 tokens and answers of 60."""
    assert heard(10, 60, replace(WRONG, draft_context=draft_context)).drafting[0].length == length


def test_a_look_up_that_is_never_right_may_be_right_on_other_text(caplog: pytest.LogCaptureFixture) -> None:
    assert heard(10, 60, replace(WRONG, draft_method=DraftMethod.NGRAM)).drafting[0].length == 3
    assert not caplog.records


@pytest.mark.parametrize("is_adaptive", [True, False])
def test_rounds_without_a_witness_are_not_judged(is_adaptive: bool) -> None:
    control = DraftLength(3, is_adaptive=is_adaptive)
    odds = control.new_odds()
    for _ in range(1000):
        control.observe_round(odds, 3, 0, 0)
    assert not control.is_broken
    for number in range(200):
        control.observe_round(odds, 3, 0, 0, witness=f"r{number % 8}")
    assert control.is_broken and control.reason.startswith("off: 1.00 tokens a round")
