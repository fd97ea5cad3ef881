"""The size of the fleet, by simulation: steps, noise, bursts, and what each mark does alone."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.autoscale import Autoscaler, Decision, Load, ScalingPolicy
from tests.cluster.scaling_world import ScalingWorld

POLICY = ScalingPolicy(min_replicas=1, max_replicas=8, sequences_per_replica=16)
QUICK = dataclasses.replace(POLICY, down_after_s=60.0, idle_to_zero_s=300.0)
BUSY = Load(num_serving=1, num_sequences=40, num_waiting=24, queue_s=5.0)
CALM = Load(num_serving=2, num_sequences=2)


def policy(**changes: object) -> ScalingPolicy:
    return dataclasses.replace(POLICY, **changes)  # type: ignore[arg-type]


def decide(scaler: Autoscaler, seconds: range, load: Load) -> Decision:
    """A look a second; the last decision."""
    return [scaler.decide(float(now), load) for now in seconds][-1]


def test_a_step_of_load_brings_replicas_until_nobody_waits_and_none_too_many() -> None:
    world = ScalingWorld(POLICY, rate=lambda now: 2.0 if now < 100 else 12.0).run(600)
    sizes = [wanted for _, wanted, _ in world.changes]
    assert sizes == sorted(sizes) and world.num_flaps == 0
    # 12 a second for 4 s each are 48 at a time, three full replicas.
    assert 4 <= sizes[-1] <= 6
    assert world.load().num_waiting == 0
    assert world.changes[0][0] < 115, "the first asked for a few seconds after the step"
    assert "sequences waiting, the first for" in world.changes[0][2]


def test_when_the_load_falls_the_fleet_follows_once_and_calmly() -> None:
    world = ScalingWorld(POLICY, rate=lambda now: 12.0 if now < 400 else 0.5).run(1200)
    sizes = [wanted for _, wanted, _ in world.changes]
    top = sizes.index(max(sizes))
    assert sizes[: top + 1] == sorted(sizes[: top + 1]) and sizes[top:] == sorted(sizes[top:], reverse=True)
    assert sizes[-1] == 1 and world.num_flaps == 1
    assert world.changes[top + 1][0] >= 400 + POLICY.down_after_s


def noisy(mean: float, depth: float, period_s: float, seed: int) -> Callable[[float], float]:
    draw = random.Random(seed)
    factors = [draw.uniform(1 - depth, 1 + depth) for _ in range(10_000)]
    return lambda now: mean * factors[int(now / period_s) % len(factors)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("period_s", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("mean", [3.0, 5.0, 9.0])
def test_noise_about_a_constant_mean_makes_no_flaps(mean: float, period_s: float, seed: int) -> None:
    world = ScalingWorld(POLICY, rate=noisy(mean, 0.6, period_s, seed), seed=seed).run(1800)
    assert world.num_flaps == 0, world.changes


def test_slow_waves_are_followed_and_not_more_than_followed() -> None:
    period_s = 600.0
    wave = ScalingWorld(POLICY, rate=lambda now: 6.0 - 5.0 * math.cos(2 * math.pi * now / period_s)).run(5 * period_s)
    assert wave.num_flaps <= 2 * 5, wave.changes


def test_a_burst_that_is_over_at_once_changes_nothing() -> None:
    world = ScalingWorld(POLICY, rate=lambda now: 40.0 if now in (50.0, 90.0) else 1.0, service_s=0.5).run(300)
    assert not world.changes


def test_the_bounds_hold() -> None:
    world = ScalingWorld(policy(min_replicas=2, max_replicas=3), rate=lambda now: 100.0 if now < 300 else 0.0).run(4000)
    sizes = [wanted for _, wanted, _ in world.changes]
    assert max(sizes) == 3 and min(sizes) == 2


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (BUSY, "24 sequences waiting, the first for 5.0 s, over 1 s"),
        (Load(num_serving=1, num_sequences=9, kv_use=0.9), "90% of the KV caches are in use, over 85%"),
        (Load(num_serving=1, num_sequences=9, attainment=0.5), "50% of the answers are within their SLO, under 95%"),
    ],
    ids=["queue time", "KV", "SLO"],
)
def test_each_mark_brings_a_replica_by_itself_and_says_so(load: Load, reason: str) -> None:
    scaler = Autoscaler(POLICY, 1)
    assert decide(scaler, range(3), load).wanted == 1
    decision = scaler.decide(3.0, load)
    assert decision.wanted >= 2 and decision.reason == reason


def test_an_slo_that_more_replicas_cannot_help_brings_none() -> None:
    assert decide(Autoscaler(POLICY, 1), range(100), Load(num_serving=1, num_sequences=1, attainment=0.0)).wanted == 1


def test_pressure_with_a_gap_is_no_pressure_yet() -> None:
    scaler = Autoscaler(POLICY, 1)
    for now in range(60):
        load = Load(num_serving=1, num_sequences=2) if now % 3 == 2 else BUSY
        assert scaler.decide(float(now), load).wanted == 1


def test_at_most_twice_as_many_are_asked_for_until_they_serve() -> None:
    huge = Load(num_serving=2, num_sequences=500, num_waiting=460, queue_s=30.0)
    scaler = Autoscaler(POLICY, 2)
    assert decide(scaler, range(200), huge).wanted == 4
    assert decide(scaler, range(200, 400), dataclasses.replace(huge, num_serving=4)).wanted == 8


def test_a_new_replica_gets_time_to_show_what_it_does() -> None:
    scaler = Autoscaler(POLICY, 1)
    assert decide(scaler, range(10), BUSY).wanted == 2
    more = dataclasses.replace(BUSY, num_serving=2)
    assert decide(scaler, range(10, 300), BUSY).wanted == 2
    decision = decide(scaler, range(300, 304), more)  # the new one serves from here on
    assert decision.wanted == 2 and decision.reason.startswith("cooling down for 12 s")
    assert decide(scaler, range(304, 315), more).wanted == 2
    assert scaler.decide(315.0, more).wanted == 4


def test_a_queue_that_the_new_replicas_work_off_asks_for_no_more() -> None:
    scaler = Autoscaler(POLICY, 1)
    assert decide(scaler, range(30), BUSY).wanted == 2
    for now in range(30, 90):  # the second one serves: 4 are served a second, 2 come
        waiting = max(0, 120 - 2 * (now - 30))
        load = Load(
            num_serving=2, num_sequences=waiting + 32, num_waiting=waiting, num_ended=4 * now, queue_s=waiting / 4
        )
        decision = scaler.decide(float(now), load)
        assert decision.wanted == 2
        if now == 47:
            assert decision.reason.startswith("the queue clears in 43 s, though 86 sequences waiting")


def test_fewer_are_wanted_only_where_fewer_bear_the_load_with_ease() -> None:
    loads = {
        "sequences": dataclasses.replace(CALM, num_sequences=10),
        "KV": dataclasses.replace(CALM, kv_use=0.3),
        "SLO": dataclasses.replace(CALM, attainment=0.9),
        "waiting": dataclasses.replace(CALM, num_waiting=1),
    }
    for name, load in loads.items():
        assert decide(Autoscaler(QUICK, 2), range(300), load).wanted == 2, name
    decision = decide(Autoscaler(QUICK, 2), range(61), CALM)
    assert decision.wanted == 1 and decision.reason == "for 60 s, 1 would bear 2 sequences with ease"


def test_a_size_that_was_too_small_for_a_load_is_not_tried_again_for_it() -> None:
    missed = Load(num_serving=1, num_sequences=6, attainment=0.2)
    scaler = Autoscaler(QUICK, 1)
    assert decide(scaler, range(10), missed).wanted == 2
    met = Load(num_serving=2, num_sequences=6, attainment=1.0)
    assert decide(scaler, range(10, 1000), met).wanted == 2, "6 sequences were too many for one replica"
    assert decide(scaler, range(1000, 1100), dataclasses.replace(met, num_sequences=3)).wanted == 1


def test_a_lost_replica_that_recovers_slowly_is_still_wanted() -> None:
    scaler = Autoscaler(POLICY, 3)
    load = Load(num_serving=3, num_sequences=30)
    assert decide(scaler, range(100), load).wanted == 3
    assert decide(scaler, range(100, 600), dataclasses.replace(load, num_serving=2)).wanted == 3
    assert decide(scaler, range(600, 1200), dataclasses.replace(load, num_serving=0)).wanted == 3


def test_a_start_is_called_off_when_its_load_is_gone() -> None:
    scaler = Autoscaler(QUICK, 1)
    assert decide(scaler, range(10), BUSY).wanted > 1
    assert decide(scaler, range(10, 200), Load(num_serving=1, num_sequences=1)).wanted == 1


def test_to_zero_when_idle_and_back_at_once() -> None:
    scaler = Autoscaler(dataclasses.replace(QUICK, min_replicas=0), 1)
    idle = Load(num_serving=1)
    assert decide(scaler, range(300), idle).wanted == 1
    decision = scaler.decide(300.0, idle)
    assert decision == Decision(wanted=0, reason="nothing to do for 300 s")
    nothing = Load(num_serving=0)
    assert decide(scaler, range(301, 310), nothing).wanted == 0
    decision = scaler.decide(310.0, dataclasses.replace(nothing, num_sequences=2, num_waiting=2))
    assert decision == Decision(wanted=1, reason="2 sequences waiting and nothing serves")
    assert decide(scaler, range(311, 330), nothing).wanted == 1, "it is starting"


def test_with_a_minimum_of_one_an_idle_fleet_keeps_one() -> None:
    assert decide(Autoscaler(POLICY, 1), range(5000), Load(num_serving=1)).wanted == 1


loads = st.builds(
    Load,
    num_serving=st.integers(0, 8),
    num_sequences=st.integers(0, 200),
    num_waiting=st.integers(0, 200),
    queue_s=st.floats(0, 100),
    kv_use=st.floats(0, 1),
    attainment=st.none() | st.floats(0, 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 100), loads), min_size=1, max_size=60), st.integers(0, 2))
def test_whatever_comes_the_number_stays_within_bounds_and_changes_rest(
    steps: list[tuple[float, Load]], least: int
) -> None:
    rules = policy(min_replicas=least, max_replicas=4)
    scaler = Autoscaler(rules, max(1, least))
    now, last, changed_s = 0.0, scaler.wanted, -math.inf
    for seconds, load in steps:
        now += seconds
        decision = scaler.decide(now, load)
        assert least <= decision.wanted <= 4 and decision.reason
        if decision.wanted != last:
            assert 0 in (last, decision.wanted) or now - changed_s >= rules.cool_down_s
            last, changed_s = decision.wanted, now


def test_the_background_keeps_one_replica_and_brings_no_other() -> None:
    batch = Load(num_serving=1, num_background=500)
    scaler = Autoscaler(policy(min_replicas=0, idle_to_zero_s=60.0), 1)
    assert decide(scaler, range(600), batch).wanted == 1, "neither more nor none"
    assert decide(scaler, range(600, 700), Load(num_serving=1)).wanted == 0
    decision = scaler.decide(700.0, Load(num_serving=0, num_background=1))
    assert (decision.wanted, decision.reason) == (1, "1 sequence waiting and nothing serves")


def test_a_fleet_shrinks_under_a_batch_to_what_its_users_need() -> None:
    scaler = Autoscaler(QUICK, 4)
    assert decide(scaler, range(200), Load(num_serving=4, num_sequences=2, num_background=500)).wanted == 1
