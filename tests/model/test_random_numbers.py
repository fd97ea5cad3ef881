"""The counter-based generator: fixed values, range, independence of the batch, uniformity."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.random_numbers import uniforms

MASK_64 = (1 << 64) - 1


def _mix(value: int) -> int:
    """splitmix64's finaliser in plain integers, beside the array version."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK_64
    return value ^ (value >> 31)


def _uniform(seed: int, sequence_index: int, output_index: int) -> float:
    state = 0
    for field in (seed, sequence_index, output_index):
        state = _mix(((state ^ (field & MASK_64)) + 0x9E3779B97F4A7C15) & MASK_64)
    return (state >> 11) * 2.0**-53


def test_the_first_round_is_splitmix64() -> None:
    # The published first output of splitmix64 seeded with 0.
    assert _mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_values_are_fixed_for_ever() -> None:
    got = uniforms([0, 1, 2**63], [0, 0, 3], [0, 7, 4095])
    assert got.tolist() == [0.13870941014555427, 0.8695176090252215, 0.4391377692903863]


@given(
    st.lists(
        st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 2**31), st.integers(0, 2**31)),
        min_size=1,
        max_size=5,
    )
)
def test_each_number_depends_on_its_own_counter_alone(keys: list[tuple[int, int, int]]) -> None:
    seeds, sequences, outputs = (list(column) for column in zip(*keys, strict=True))
    got = uniforms(seeds, sequences, outputs)
    assert got.tolist() == [_uniform(*key) for key in keys]
    assert (got >= 0.0).all() and (got < 1.0).all()


def test_numbers_along_an_output_are_uniform_and_uncorrelated() -> None:
    count = 20_000
    along = uniforms([11] * count, [0] * count, list(range(count)))
    across = uniforms(list(range(count)), [0] * count, [5] * count)
    for numbers in (along, across):
        histogram = np.histogram(numbers, bins=100, range=(0.0, 1.0))[0]
        chi_square = float(((histogram - count / 100) ** 2 / (count / 100)).sum())
        assert chi_square < 160.0, "99 degrees of freedom: P(> 160) = 1e-4"
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(along, uniforms([12] * count, [0] * count, list(range(count))))[0, 1]) < 0.03
    assert abs(np.corrcoef(along, uniforms([11] * count, [1] * count, list(range(count))))[0, 1]) < 0.03
