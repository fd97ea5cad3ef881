"""Drawing tokens: against the stages in fp64, ties, limits and extremes, whatever the batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.sample import DrawSettings, draw_tokens

Row = tuple[float, int, float, float, float]  # temperature, top_k, top_p, min_p, point
WHOLE: Row = (1.0, 0, 1.0, 0.0, 0.5)


def _settings(rows: list[Row]) -> DrawSettings:
    temperature, top_k, top_p, min_p, points = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return DrawSettings(
        temperature=torch.tensor(temperature, dtype=torch.float32),
        top_k=torch.tensor(top_k, dtype=torch.int64),
        top_p=torch.tensor(top_p, dtype=torch.float64),
        min_p=torch.tensor(min_p, dtype=torch.float32),
        points=torch.tensor(points, dtype=torch.float64),
    )


def _drawn(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    return draw_tokens(logits, _settings(rows)).tolist()


def _buckets(logits: torch.Tensor, row: Row) -> tuple[list[int], list[float]]:
    """The tokens of one row in the order of its distribution function, and where each one's bucket ends; fp64."""
    temperature, top_k, top_p, min_p, _ = row
    exact = logits.to(torch.float64)
    mass = torch.exp((exact - exact.max()) / temperature)
    order = list(range(len(mass)))
    kept = order
    if 0 < top_k < len(mass) or top_p < 1.0:
        order = exact.argsort(descending=True, stable=True).tolist()
        limited = order[: top_k or None]
        nucleus: list[int] = []
        total, reached = float(mass[limited].sum()), 0.0
        for token in limited:
            if nucleus and top_p < 1.0 and reached >= top_p * total:
                break
            nucleus.append(token)
            reached += float(mass[token])
        kept = nucleus
    kept = [token for token in kept if mass[token] >= min_p]
    ends = (mass[kept].cumsum(0) / mass[kept].sum()).tolist()
    return kept, ends


def _is_right(token: int, logits: torch.Tensor, row: Row) -> bool:
    """Whether the point lies in the token's bucket, or within fp32 rounding of it."""
    kept, ends = _buckets(logits, row)
    at = kept.index(token) if token in kept else -1
    if at < 0:
        return False
    start = ends[at - 1] if at else 0.0
    return start - 1e-5 <= row[4] <= ends[at] + 1e-5


@pytest.mark.parametrize("vocab", [1, 2, 17, 1000, 1024, 5003])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (40, 0.8, 0.01)]
)
def test_the_point_lies_in_the_drawn_tokens_bucket(
    backend: str, draw: torch.Generator, vocab: int, top_k: int, top_p: float, min_p: float
) -> None:
    num_rows = 24
    logits = torch.randn(num_rows, vocab, generator=draw) * 2.5
    points = torch.rand(num_rows, generator=draw, dtype=torch.float64).tolist()
    rows: list[Row] = [((0.7, 1.0, 1.6)[r % 3], top_k, top_p, min_p, points[r]) for r in range(num_rows)]
    for r, token in enumerate(_drawn(logits, rows)):
        assert _is_right(token, logits[r], rows[r]), f"row {r}: token {token} for {rows[r]}"


def test_a_flat_nucleus_of_thousands_is_kept_whole(backend: str, draw: torch.Generator) -> None:
    logits = torch.randn(40, 8000, generator=draw) * 0.01
    rows: list[Row] = [(1.0, 0, 0.95, 0.0, (r + 0.5) / 40) for r in range(40)]
    for r, token in enumerate(_drawn(logits, rows)):
        assert _is_right(token, logits[r], rows[r])


def test_equals_go_to_the_lower_id(backend: str) -> None:
    logits = torch.zeros(30, 3000)
    logits[:, [2999, 1500, 7]] = 1.0
    points = [(r + 0.5) / 30 for r in range(30)]
    assert set(_drawn(logits, [(1.0, 2, 1.0, 0.0, p) for p in points])) == {7, 1500}
    assert set(_drawn(logits, [(1.0, 5, 1.0, 0.0, p) for p in points])) == {7, 1500, 2999, 0, 1}


@pytest.mark.parametrize("point", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("limits", [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.99, 0.0), (0, 1.0, 0.5), (9000, 1.0, 0.0)])
def test_the_ends_of_the_unit_interval_never_draw_a_token_without_mass(
    backend: str, point: float, limits: tuple[int, float, float]
) -> None:
    logits = torch.full((4, 5000), -torch.inf)
    logits[0, 0] = logits[1, 4999] = logits[2, 2500] = 1.0
    logits[3, [1200, 3600]] = 0.5
    expected = [0, 4999, 2500, 1200 if point == 0.0 else 3600]
    assert _drawn(logits, [(1.0, *limits, point)] * 4) == expected


@pytest.mark.parametrize("limits", [(0, 1.0, 0.0), (50, 1.0, 0.0), (0, 0.9, 0.0)])
@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(
    backend: str, draw: torch.Generator, temperature: float, limits: tuple[int, float, float]
) -> None:
    logits = torch.randn(5, 300, generator=draw)
    assert _drawn(logits, [(temperature, *limits, 0.999)] * 5) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("limits", [(0, 1.0, 0.0), (50, 1.0, 0.0), (0, 0.9, 0.0)])
def test_enormous_logits_and_temperatures(backend: str, limits: tuple[int, float, float]) -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0, 1e38], [1.0, 2.0, 3.0, 4.0]])
    assert _drawn(logits, [(1.0, *limits, 0.999), (1e38, *limits, 0.0)])[0] == 0


def test_top_p_of_zero_keeps_the_best(backend: str, draw: torch.Generator) -> None:
    logits = torch.randn(6, 64, generator=draw)
    assert _drawn(logits, [(1.0, 0, 0.0, 0.0, 0.99)] * 6) == logits.argmax(-1).tolist()


def test_no_rows_are_valid(backend: str) -> None:
    assert _drawn(torch.zeros(0, 10), []) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_does_not_depend_on_its_batch(backend: str, data: st.DataObject) -> None:
    vocab, num_rows = data.draw(st.sampled_from([1, 33, 2049])), data.draw(st.integers(1, 9))
    seed, scale = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([0.0, 0.1, 3.0, 1e4]))
    logits = torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale
    row = st.tuples(
        st.sampled_from([1e-6, 0.5, 1.0, 50.0]),
        st.sampled_from([0, 0, 1, 7, 600, 10**12]),
        st.sampled_from([1.0, 1.0, 0.0, 0.3, 0.999, 2.0]),
        st.sampled_from([0.0, 0.0, 0.1, 1.0, 3.0]),
        st.floats(0.0, 1.0, exclude_max=True),
    )
    rows = data.draw(st.lists(row, min_size=num_rows, max_size=num_rows))
    together = _drawn(logits, rows)
    assert together == [_drawn(logits[r : r + 1].clone(), [rows[r]])[0] for r in range(num_rows)]
    assert all(0 <= token < vocab and math.isfinite(logits[r, token]) for r, token in enumerate(together))
