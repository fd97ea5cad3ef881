from __future__ import annotations

import pytest

from cluster.admission import Admission
from sigmoe.errors import Overloaded


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_bound_holds_and_places_come_back(clock: Clock) -> None:
    admission = Admission(2, clock)
    with admission.admit(), admission.admit():
        assert admission.num_active == 2
        with pytest.raises(Overloaded, match="2 requests are under way") as refusal, admission.admit():
            pytest.fail("admitted a third")
        assert refusal.value.retry_after_s == pytest.approx(0.1)
        assert admission.num_active == 2
    assert admission.num_active == 0
    with admission.admit():
        assert admission.num_active == 1


def test_a_failing_call_gives_its_place_back(clock: Clock) -> None:
    admission = Admission(1, clock)
    with pytest.raises(KeyError), admission.admit():
        raise KeyError
    assert admission.num_active == 0


def test_the_refused_are_told_to_come_back_one_after_the_other(clock: Clock) -> None:
    admission = Admission(1, clock)
    for _ in range(100):  # a call ends every 2 seconds
        with admission.admit():
            clock.now_s += 2.0
    hints = []
    with admission.admit():
        for _ in range(4):
            with pytest.raises(Overloaded) as refusal, admission.admit():
                pass
            hints.append(refusal.value.retry_after_s)
        for _ in range(100):
            with pytest.raises(Overloaded) as refusal, admission.admit():
                pass
    assert hints == pytest.approx([2.0, 4.0, 6.0, 8.0], rel=0.01)
    assert refusal.value.retry_after_s == 30.0


def test_the_background_takes_what_is_free_and_is_no_reason_to_refuse_others(clock: Clock) -> None:
    admission = Admission(2, clock)
    with admission.admit(is_background=True), admission.admit(is_background=True):
        with pytest.raises(Overloaded), admission.admit(is_background=True):
            pytest.fail("admitted a third of the background")
        with admission.admit(), admission.admit():
            assert admission.num_active == 4
            with pytest.raises(Overloaded), admission.admit():
                pytest.fail("admitted a third of the foreground")
    with admission.admit(), admission.admit(is_background=True), pytest.raises(Overloaded):  # noqa: SIM117
        with admission.admit(is_background=True):
            pytest.fail("the foreground has taken a place")
    assert admission.num_active == 0
