"""`sigmoe serve --plan-scale`: what the autoscaler would do, found by asking it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.autoscale import Autoscaler, Load, ScalingPolicy
from cluster.config import Config
from cluster.settings import scaling_policy
from sigmoe import Client, Security, SigmoeError
from sigmoe.results import FleetLoad

EXIT_UNREACHABLE = 3
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLine:
    """One load that lasts, and what it leads to."""

    situation: str
    serving: int
    wanted: int
    after_s: float | None  # None: the number stays
    reason: str


def plan_scale(config: Config, *, target: str | None, is_json: bool, security: Security | None = None) -> int:
    """Print the plan; exit code 3 where the target does not answer."""
    policy = scaling_policy(config)
    try:
        if target is not None:
            lines = [judge(policy, target, security)]
        else:
            lines = list(plan(policy)) if policy.is_elastic else []
    except SigmoeError as error:
        print(f"sigmoe serve: --target: {target}: {error}", file=sys.stderr)
        return EXIT_UNREACHABLE
    if is_json:
        print(json.dumps({"policy": dataclasses.asdict(policy), "plan": [dataclasses.asdict(line) for line in lines]}))
        return 0
    print("\n".join(rules(policy, config.cluster.ranks)))
    if lines:
        print(f"\n{'load that lasts':<44} {'serving':>7} {'wanted':>6}  {'after':>7}  why")
    for line in lines:
        after = "stays" if line.after_s is None else f"{line.after_s:.0f} s"
        print(f"{line.situation:<44} {line.serving:>7} {line.wanted:>6}  {after:>7}  {line.reason}")
    return 0


def rules(policy: ScalingPolicy, num_ranks: int) -> Iterator[str]:
    """The policy in words."""
    yield f"replicas  {policy.min_replicas} to {policy.max_replicas}, each a group of {num_ranks} ranks in a placement"
    yield f"          group of its own, for {policy.sequences_per_replica} sequences at a time"
    if not policy.is_elastic:
        yield "fixed     min_replicas and max_replicas are equal: nothing is ever decided"
        return
    yield f"more      when for {policy.up_after_s:g} s without a break"
    yield f"          a sequence has waited longer than {policy.target_queue_s:g} s, or"
    yield f"          more than {policy.kv_high:.0%} of the KV blocks are in use, or"
    yield f"          fewer than {policy.slo_share:.0%} of the answers are within their SLO;"
    yield "          at most twice as many at a time, and none for a queue that clears by itself"
    yield f"fewer     when for {policy.down_after_s:g} s without a break fewer would have borne the load with ease"
    yield f"rest      {policy.cool_down_s:g} s after each change"
    if policy.min_replicas == 0:
        yield f"zero      after {policy.idle_to_zero_s:g} s without any request; the next request starts one at once"


def plan(policy: ScalingPolicy) -> Iterator[PlanLine]:
    """Typical loads, each for the smallest and for the largest fleet."""
    sizes = sorted({max(1, policy.min_replicas), policy.max_replicas})
    for situation, load in _situations(policy):
        for size in sizes:
            yield _follow(policy, situation, _for(size, load, policy))
    if policy.min_replicas == 0:
        yield _follow(policy, "none serves, one request waits", Load(num_serving=0, num_sequences=1, num_waiting=1))


def judge(policy: ScalingPolicy, target: str, security: Security | None = None) -> PlanLine:
    """The load of a running server. Raises SigmoeError where it does not answer."""
    with Client(target, timeout_s=_TIMEOUT_S, security=security) as client:
        cluster = client.cluster()
    seen = cluster.fleet.load
    if seen is None:  # its number is fixed, so it does not measure; what it shows of its ranks must do
        ranks = [rank for rank in cluster.ranks if rank.state == "serving"]
        waiting = sum(rank.waiting_sequences for rank in ranks)
        blocks = sum(rank.kv_blocks for rank in ranks)
        seen = FleetLoad(
            serving_replicas=len({rank.replica for rank in ranks}),
            sequences=waiting + sum(rank.running_sequences for rank in ranks),
            waiting_sequences=waiting,
            queue_s=0.0,
            kv_use=1 - sum(rank.kv_blocks_free for rank in ranks) / blocks if blocks else 0.0,
            attainment=None,
        )
    load = Load(
        num_serving=seen.serving_replicas,
        num_sequences=seen.sequences,
        num_waiting=seen.waiting_sequences,
        queue_s=seen.queue_s,
        kv_use=seen.kv_use,
        attainment=seen.attainment,
        num_background=seen.background_sequences,
    )
    return _follow(policy, f"now at {target}: {load.num_sequences} sequences", load)


def _situations(policy: ScalingPolicy) -> Iterator[tuple[str, Load]]:
    """Loads of a fleet of one; `_for` makes them those of more."""
    full = policy.sequences_per_replica
    wait_s = 2 * policy.target_queue_s
    yield "nothing to do", Load(num_serving=1)
    yield "a quarter of the places taken", Load(num_serving=1, num_sequences=full // 4, kv_use=0.2)
    yield "all places taken, nobody waits", Load(num_serving=1, num_sequences=full, kv_use=0.8 * policy.kv_high)
    yield (
        f"half as many more wait, {wait_s:g} s by now",
        Load(num_serving=1, num_sequences=full + full // 2, num_waiting=full // 2, queue_s=wait_s, kv_use=0.5),
    )
    above = (1 + policy.kv_high) / 2
    yield f"{above:.0%} of the KV blocks in use", Load(num_serving=1, num_sequences=full // 2, kv_use=above)
    yield "half of the answers miss their SLO", Load(num_serving=1, num_sequences=full // 2, attainment=0.5)


def _for(size: int, load: Load, policy: ScalingPolicy) -> Load:
    return dataclasses.replace(
        load, num_serving=size, num_sequences=load.num_sequences * size, num_waiting=load.num_waiting * size
    )


def _follow(policy: ScalingPolicy, situation: str, load: Load) -> PlanLine:
    """Show the load every second until the number changes, or is sure to stay."""
    scaler = Autoscaler(policy, load.num_serving)
    horizon_s = 2 + round(max(policy.up_after_s, policy.down_after_s, policy.idle_to_zero_s) + policy.cool_down_s)
    for now_s in range(horizon_s):
        decision = scaler.decide(float(now_s), load)
        if decision.wanted != load.num_serving:
            return PlanLine(
                situation=situation,
                serving=load.num_serving,
                wanted=decision.wanted,
                after_s=float(now_s),
                reason=decision.reason,
            )
    return PlanLine(
        situation=situation, serving=load.num_serving, wanted=decision.wanted, after_s=None, reason=decision.reason
    )
