"""Agreement, sleep and ring, on both locksteps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from engine.config import StoreAddress
from engine.lockstep import GroupLockstep, LocalLockstep, Lockstep, StepNeeds, host_store, reach_store
from tests.engine.worlds import DEADLINE_S, group_locksteps

MAKERS: dict[str, Callable[[], list[Lockstep]]] = {
    "local": lambda: [LocalLockstep()],
    "group of 1": lambda: list(group_locksteps(1)),
    "group of 3": lambda: list(group_locksteps(3)),
}


@pytest.fixture(params=MAKERS, scope="module")
def locksteps(request: pytest.FixtureRequest) -> list[Lockstep]:
    return MAKERS[request.param]()


@pytest.fixture
def threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=8)


def _all(
    threads: ThreadPoolExecutor, locksteps: list[Lockstep], call: Callable[[int, Lockstep], object]
) -> list[object]:
    futures: list[Future[object]] = [threads.submit(call, n, lockstep) for n, lockstep in enumerate(locksteps)]
    return [future.result(DEADLINE_S) for future in futures]


def test_all_get_the_same_answer(threads: ThreadPoolExecutor, locksteps: list[Lockstep]) -> None:
    size = len(locksteps)
    for worker in range(size):
        steps = _all(
            threads,
            locksteps,
            lambda n, ls: ls.agree(StepNeeds(num_rows=10 + n, has_work=n == worker)),  # noqa: B023
        )
        assert all(step == steps[0] for step in steps)


def test_the_answer_names_rows_work_and_leaving(threads: ThreadPoolExecutor) -> None:
    locksteps: list[Lockstep] = list(group_locksteps(2))
    needs = [
        StepNeeds(num_rows=3, num_sequences=2, has_work=False, is_leaving=True),
        StepNeeds(num_rows=0, has_work=False),
    ]
    for step in _all(threads, locksteps, lambda n, ls: ls.agree(needs[n])):
        assert (step.num_rows, step.has_work, step.is_leaving) == ((3, 0), False, True)  # type: ignore[attr-defined]
        assert step.num_sequences == (2, 0)  # type: ignore[attr-defined]


def test_a_group_is_steady_if_every_rank_is(threads: ThreadPoolExecutor, locksteps: list[Lockstep]) -> None:
    for restless in range(-1, len(locksteps)):
        steps = _all(
            threads,
            locksteps,
            lambda n, ls: ls.agree(StepNeeds(num_rows=1, has_work=True, is_steady=n != restless)),  # noqa: B023
        )
        assert [step.is_steady for step in steps] == [restless < 0] * len(locksteps)  # type: ignore[attr-defined]


def test_ranks_that_ran_different_numbers_of_steps_are_caught(threads: ThreadPoolExecutor) -> None:
    locksteps: list[Lockstep] = list(group_locksteps(2))
    with pytest.raises(AssertionError, match=r"\(0, 1\)"):
        _all(threads, locksteps, lambda n, ls: ls.agree(StepNeeds(num_rows=0, has_work=True, num_steps=n)))


def test_ranks_that_made_different_numbers_of_collectives_are_caught(threads: ThreadPoolExecutor) -> None:
    locksteps: list[Lockstep] = list(group_locksteps(2))
    with pytest.raises(AssertionError, match=r"different numbers of collectives: \(0, 1\)"):
        _all(threads, locksteps, lambda n, ls: ls.agree(StepNeeds(num_rows=0, has_work=True, num_collectives=n)))


def test_a_ring_ends_the_sleep_of_all(threads: ThreadPoolExecutor, locksteps: list[Lockstep]) -> None:
    for ringer in range(len(locksteps)):
        sleeps = [threads.submit(lockstep.sleep) for lockstep in locksteps]
        assert not any(sleep.done() for sleep in sleeps)
        locksteps[ringer].ring()
        for sleep in sleeps:
            sleep.result(DEADLINE_S)


def test_a_ring_before_the_sleep_is_not_lost(threads: ThreadPoolExecutor, locksteps: list[Lockstep]) -> None:
    for _ in range(3):
        locksteps[-1].ring()
        _all(threads, locksteps, lambda n, ls: ls.sleep())


def test_sleeps_leave_no_keys_behind(threads: ThreadPoolExecutor) -> None:
    locksteps = group_locksteps(2)
    store = locksteps[0].store
    first = store.num_keys()
    for _ in range(20):
        locksteps[0].ring()
        _all(threads, list(locksteps), lambda n, ls: ls.sleep())
    assert store.num_keys() <= first + 2


def test_a_dead_peer_ends_the_agreement_with_an_error(threads: ThreadPoolExecutor) -> None:
    alone: GroupLockstep = group_locksteps(2)[0]  # nobody holds the other, whose connections end with it
    with pytest.raises(RuntimeError):
        alone.agree(StepNeeds(num_rows=0, has_work=False))


def test_a_store_is_reached_by_its_address() -> None:
    store = host_store("127.0.0.1")
    reached = reach_store(StoreAddress(host="127.0.0.1", port=store.port), timeout_s=DEADLINE_S)
    store.set("key", "value")
    assert reached.get("key") == b"value"
