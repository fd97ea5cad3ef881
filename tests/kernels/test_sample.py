"""Drawing tokens: against the stages in fp64, ties, limits and extremes, whatever the batch."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.sample import DrawSettings, choose_tokens, draw_from, draw_probabilities, draw_tokens

Row = tuple[float, int, float, float, float]  # temperature, top_k, top_p, min_p, point
WHOLE: Row = (1.0, 0, 1.0, 0.0, 0.5)


@pytest.fixture(autouse=True)
def quick_interpreter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tiles for the interpreter, which pays by the operation. Sums are of integers: tiles change no token."""
    is_triton = "backend" in request.fixturenames and request.getfixturevalue("backend") == "triton"
    if is_triton and not torch.cuda.is_available():
        monkeypatch.setattr("kernels.sample.triton_kernel.OTHERS", 512)
        monkeypatch.setattr("kernels.sample.triton_kernel.FEW_OTHERS", 256)


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
    num_rows = 6 if backend == "triton" else 24
    logits = torch.randn(num_rows, vocab, generator=draw) * 2.5
    points = torch.rand(num_rows, generator=draw, dtype=torch.float64).tolist()
    rows: list[Row] = [((0.7, 1.0, 1.6)[r % 3], top_k, top_p, min_p, points[r]) for r in range(num_rows)]
    for r, token in enumerate(_drawn(logits, rows)):
        assert _is_right(token, logits[r], rows[r]), f"row {r}: token {token} for {rows[r]}"


def test_a_flat_nucleus_of_thousands_is_kept_whole(backend: str, draw: torch.Generator) -> None:
    num_rows = 2 if backend == "triton" else 40
    logits = torch.randn(num_rows, 8000, generator=draw) * 0.01
    limits = [(0, 0.95, 0.0), (2000, 0.9, 0.99)]
    rows: list[Row] = [(1.0, *limits[r % 2], (r + 0.5) / num_rows) for r in range(num_rows)]
    for r, token in enumerate(_drawn(logits, rows)):
        assert _is_right(token, logits[r], rows[r])


def test_equals_go_to_the_lower_id(backend: str) -> None:
    logits = torch.zeros(10, 900)
    logits[:, [899, 500, 7]] = 1.0
    points = [(r + 0.5) / 10 for r in range(10)]
    assert set(_drawn(logits, [(1.0, 2, 1.0, 0.0, p) for p in points])) == {7, 500}
    assert set(_drawn(logits, [(1.0, 5, 1.0, 0.0, p) for p in points])) == {7, 500, 899, 0, 1}
    many = torch.zeros(1, 3000)  # more equals than there is room for candidates
    many[0, [2999, 1500, 7]] = 1.0
    assert _drawn(many, [(1.0, 5, 1.0, 0.0, 0.95)]) == [1]


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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


KINDS_OF_ROWS: list[Row] = [
    (0.7, 20, 0.9, 0.0, 0.31),
    (1.0, 0, 0.95, 0.0, 0.84),
    (1.0, 0, 0.6, 0.02, 0.999),
    (2.0, 900, 0.8, 0.0, 0.77),
    (1.3, 700, 1.0, 0.01, 0.6),
    (0.02, 1500, 1.0, 0.0, 0.9),
    (1.0, 0, 1.0, 0.1, 0.5),
]


@pytest.mark.parametrize("scale", [0.0, 0.01, 3.0, 40.0])
def test_every_road_and_share_draws_the_same_token(
    triton_backend: str, draw: torch.Generator, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """Few candidates or too many to compare, a row for one program or shared: the sums are of the same integers."""
    module = pytest.importorskip("kernels.sample.triton_kernel")
    vocab = 5000 if torch.cuda.is_available() else 1500
    logits = (torch.randn(len(KINDS_OF_ROWS), vocab, generator=draw) * scale).round(decimals=2)  # some are equal
    drawn = []
    for changes in (
        {"MAX_CANDIDATES": 2048},
        {"MAX_CANDIDATES": 2048, "FEW_CANDIDATES": 64, "BLOCK": 256, "PROGRAMS": 7},
        {"MAX_CANDIDATES": 16, "PART_TOKENS": 8, "PARTS_AT_ONCE": 128, "AT_ONCE": 128, "DRAW_PROGRAMS": 7},
    ):
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.setattr(module, name, value)
            patch.setattr(module, "draw_constants", module.draw_constants.__wrapped__)  # not what was kept
            drawn.append(_drawn(logits, KINDS_OF_ROWS))
    assert all(tokens == drawn[0] for tokens in drawn), drawn
    for r, token in enumerate(drawn[0]):
        assert _is_right(token, logits[r], KINDS_OF_ROWS[r]), f"row {r}: token {token}"


def test_rows_are_chosen_greedily_or_drawn_as_each_wants(backend: str) -> None:
    """One call for a batch of all kinds, rows without a finite logit among them."""
    draw = torch.Generator(torch.get_default_device()).manual_seed(5)
    logits = torch.randn(9, 300, generator=draw)
    logits[1, 40] = logits[1, 17] = 9.0  # a tie
    logits[3], logits[4, 5], logits[6] = float("nan"), float("inf"), float("-inf")
    greedy: Row = (0.0, 0, 1.0, 0.0, 0.99)
    rows = [WHOLE, greedy, (0.7, 20, 0.9, 0.01, 0.3), WHOLE, greedy, greedy, WHOLE, (1e-36, 5, 1.0, 0.0, 0.9), greedy]
    ids, best = choose_tokens(logits, _settings(rows))
    assert ids.dtype == torch.int64 and ((ids >= 0) & (ids < 300)).all()
    assert torch.equal(best.nan_to_num(7.0), logits.amax(1).nan_to_num(7.0))
    drawn = [0, 2, 7]
    assert ids[drawn].tolist() == _drawn(logits[drawn].contiguous(), [rows[row] for row in drawn])
    assert ids[1] == 17 and ids[[5, 8]].tolist() == logits[[5, 8]].argmax(1).tolist()
    assert choose_tokens(logits[:0], _settings([]))[0].tolist() == []


@pytest.mark.parametrize("vocab", [7, 300])
def test_whatever_the_logits_are_a_token_is_drawn(backend: str, vocab: int) -> None:
    """What it is means nothing where they are no numbers, but an id beyond the vocabulary would index something."""
    nan, inf = float("nan"), float("inf")
    logits = torch.zeros(8, vocab)
    logits[0], logits[1], logits[2] = nan, inf, -inf
    logits[3, 3], logits[4, 3], logits[5, :-1], logits[6, 1:] = nan, inf, nan, nan
    logits[7, ::2], logits[7, 1::2] = inf, -inf
    kinds: list[Row] = [WHOLE, (0.7, 5, 1.0, 0.0, 0.0), (1.0, 0, 0.9, 0.0, 0.99), (1e-36, 3, 0.5, 0.5, 1.0 - 2**-53)]
    for kind in kinds:
        drawn = torch.tensor(_drawn(logits, [kind] * len(logits)))
        assert ((drawn >= 0) & (drawn < vocab)).all(), f"{kind}: {drawn.tolist()}"
        settings = _settings([kind] * len(logits))
        drawn = draw_from(draw_probabilities(logits, settings), settings.points)
        assert ((drawn >= 0) & (drawn < vocab)).all(), f"{kind}: {drawn.tolist()} by probabilities"
