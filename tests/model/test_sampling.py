"""Sampling: every stage against formulas in fp64, ties, bad rows, seeds, and independence of the batch."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.penalties import LogitEdits
from model.random_numbers import uniforms
from model.sampling import GREEDY, SamplingRow, sample

VOCAB = 32


def _logits(seed: int, num_rows: int = 1, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2.0


def _edited(logits: npt.NDArray[np.float64], edits: LogitEdits) -> npt.NDArray[np.float64]:
    """Penalties, bias and forbidden tokens of one row, token by token, in fp64."""
    out = logits.copy()
    output = list(edits.history[edits.num_prompt_tokens :])
    for token in set(edits.history):
        out[token] = out[token] / edits.repetition_penalty if out[token] > 0 else out[token] * edits.repetition_penalty
    for token in set(output):
        out[token] -= edits.presence_penalty + edits.frequency_penalty * output.count(token)
    for token, value in edits.logit_bias:
        out[token] += value
    for token in edits.forbidden_token_ids:
        out[token] = -math.inf
    return out


def _distribution(logits: npt.NDArray[np.float64], row: SamplingRow) -> npt.NDArray[np.float64]:
    """The probabilities of one row by the pipeline's definition, in fp64."""
    logits = _edited(logits, row.edits) if row.edits else logits
    probs = np.exp((logits - logits.max()) / row.temperature)
    probs /= probs.sum()
    order = sorted(range(len(probs)), key=lambda i: (-logits[i], i))
    kept = order[: row.top_k] if row.top_k else order
    total, mass = sum(probs[i] for i in kept), 0.0
    nucleus: list[int] = []
    for i in kept:
        if nucleus and mass >= row.top_p * total:
            break
        nucleus.append(i)
        mass += probs[i]
    final = np.zeros_like(probs)
    for i in nucleus:
        if probs[i] >= row.min_p * probs.max():
            final[i] = probs[i]
    result: npt.NDArray[np.float64] = final / final.sum()
    return result


def _expected(logits: npt.NDArray[np.float64], row: SamplingRow) -> int:
    """The token by inverse distribution function, in the order the sampler documents."""
    probs = _distribution(logits, row)
    shown = _edited(logits, row.edits) if row.edits else logits
    order = list(range(len(probs)))
    if row.top_k > 0 or row.top_p < 1.0:
        order.sort(key=lambda i: (-shown[i], i))
    point, passed = uniforms([row.seed], [row.sequence_index], [row.output_index])[0], 0.0
    for token in order:
        passed += probs[token]
        if passed > point:
            return token
    return max(i for i in order if probs[i] > 0)


STAGES = {
    "temperature": SamplingRow(temperature=0.7),
    "top_k": SamplingRow(temperature=1.0, top_k=5),
    "top_p": SamplingRow(temperature=1.3, top_p=0.8),
    "min_p": SamplingRow(temperature=1.0, min_p=0.1),
    "all": SamplingRow(temperature=0.9, top_k=12, top_p=0.9, min_p=0.02),
    "repetition": SamplingRow(
        temperature=1.0, edits=LogitEdits(repetition_penalty=1.7, history=(1, 2, 2, 9, 3, 3), num_prompt_tokens=4)
    ),
    "presence": SamplingRow(
        temperature=1.0, edits=LogitEdits(presence_penalty=1.5, history=(1, 2, 2, 9, 3, 3), num_prompt_tokens=4)
    ),
    "frequency": SamplingRow(
        temperature=1.0, edits=LogitEdits(frequency_penalty=0.8, history=(1, 2, 9, 3, 3, 4), num_prompt_tokens=2)
    ),
    "bias": SamplingRow(temperature=1.0, edits=LogitEdits(logit_bias=((4, 3.0), (5, -100.0), (4, 0.5)))),
    "forbidden": SamplingRow(temperature=1.0, edits=LogitEdits(forbidden_token_ids=(0, 1, 2, 3))),
    "everything": SamplingRow(
        temperature=0.8,
        top_k=20,
        top_p=0.95,
        min_p=0.01,
        edits=LogitEdits(
            repetition_penalty=1.05,
            presence_penalty=0.3,
            frequency_penalty=0.2,
            logit_bias=((7, 1.0),),
            forbidden_token_ids=(8,),
            history=(1, 7, 8, 9, 9),
            num_prompt_tokens=2,
        ),
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_draws_the_token_that_the_formulas_give(name: str) -> None:
    num_draws = 300
    logits = _logits(3)
    rows = [dataclasses.replace(STAGES[name], seed=s, output_index=s % 7) for s in range(num_draws)]
    got = sample(logits.expand(num_draws, -1).contiguous(), rows)
    exact = logits[0].to(torch.float64).numpy()
    expected = [_expected(exact, row) for row in rows]
    differing = sum(a != b for a, b in zip(got.token_ids, expected, strict=True))
    assert differing <= 1, f"{differing} of {num_draws} differ: more than fp32 rounding at a bucket's edge explains"


@pytest.mark.parametrize("name", STAGES)
def test_draws_follow_the_distribution(name: str) -> None:
    """Exact one-sample chi-square; tokens of probability 0 must never come."""
    num_draws = 4000
    logits = _logits(5)
    row = STAGES[name]
    rows = [dataclasses.replace(row, seed=1000 + s) for s in range(num_draws)]
    drawn = sample(logits.expand(num_draws, -1).contiguous(), rows).token_ids
    expected = _distribution(logits[0].to(torch.float64).numpy(), row) * num_draws
    counts = np.bincount(drawn, minlength=VOCAB).astype(np.float64)
    assert counts[expected == 0].sum() == 0, "a token outside the kept set was drawn"
    large = expected >= 5
    cells = [*(zip(counts[large], expected[large], strict=True)), (counts[~large].sum(), expected[~large].sum())]
    cells = [(c, e) for c, e in cells if e > 0]
    chi_square = sum((c - e) ** 2 / e for c, e in cells)
    freedom = max(len(cells) - 1, 1)
    # Wilson-Hilferty: the chi-square quantile at P = 1e-5 (z = 4.265).
    limit = freedom * (1 - 2 / (9 * freedom) + 4.265 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi_square < limit, f"chi-square {chi_square:.1f} over {limit:.1f} with {freedom} degrees of freedom"


def test_greedy_ties_go_to_the_lower_id() -> None:
    logits = torch.zeros(3, 40_000)
    logits[1, [39_999, 77, 20_000]] = 2.0
    logits[2, [5, 4]] = 1.0
    assert sample(logits, [GREEDY] * 3).token_ids == [0, 77, 4]


def test_ranked_ties_go_to_the_lower_id() -> None:
    logits = torch.zeros(64, 1000)
    rows = [SamplingRow(temperature=1.0, top_k=3, seed=s) for s in range(64)]
    assert set(sample(logits, rows).token_ids) == {0, 1, 2}


def test_greedy_applies_the_edits() -> None:
    logits = torch.tensor([[3.0, 2.9, -1.0]])
    edits = LogitEdits(repetition_penalty=2.0, history=(0,), num_prompt_tokens=1)
    assert sample(logits, [SamplingRow(edits=edits)]).token_ids == [1]
    assert logits[0, 0] == 3.0, "the caller's logits were changed"


def test_no_rows_are_valid() -> None:
    assert sample(torch.zeros(0, VOCAB), []).token_ids == []


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("row", [GREEDY, SamplingRow(temperature=1.0), SamplingRow(temperature=1.0, top_p=0.5)])
def test_a_bad_row_is_reported_and_leaves_the_others_alone(poison: float, row: SamplingRow) -> None:
    logits = _logits(1, num_rows=3)
    clean = sample(logits.clone(), [row] * 3)
    logits[1, 7] = poison
    got = sample(logits, [row] * 3)
    assert set(got.errors) == {1} and "finite" in got.errors[1]
    assert [got.token_ids[r] for r in (0, 2)] == [clean.token_ids[r] for r in (0, 2)]


def test_a_row_without_any_allowed_token_is_reported() -> None:
    everything = SamplingRow(temperature=1.0, edits=LogitEdits(forbidden_token_ids=tuple(range(VOCAB))))
    assert set(sample(_logits(1, 2), [everything, GREEDY]).errors) == {0}


def test_a_bias_outside_the_vocabulary_is_reported() -> None:
    row = SamplingRow(edits=LogitEdits(logit_bias=((VOCAB, 1.0),)))
    got = sample(_logits(1, 2), [row, GREEDY])
    assert got.errors == {0: f"logit_bias: token id {VOCAB} is outside the vocabulary of {VOCAB}"}


def test_forbidden_ids_outside_the_vocabulary_are_harmless() -> None:
    row = SamplingRow(edits=LogitEdits(forbidden_token_ids=(VOCAB, -1)))
    logits = _logits(1, 2)
    assert sample(logits, [row, GREEDY]).token_ids == logits.argmax(dim=-1).tolist()


def test_a_tiny_temperature_is_greedy() -> None:
    logits = _logits(2, num_rows=4)
    rows = [SamplingRow(temperature=t, seed=s) for s, t in enumerate((1e-45, 1e-30, 1e-9, 1e-6))]
    assert sample(logits, rows).token_ids == logits.argmax(dim=-1).tolist()


def test_a_long_nucleus_is_sorted_whole() -> None:
    """A flat distribution needs more tokens than are ranked at first."""
    vocab, num_draws = 2000, 400
    logits = _logits(9, vocab=vocab) * 0.01
    row = SamplingRow(temperature=1.0, top_p=0.9)
    rows = [dataclasses.replace(row, seed=s) for s in range(num_draws)]
    got = sample(logits.expand(num_draws, -1).contiguous(), rows).token_ids
    exact = logits[0].to(torch.float64).numpy()
    kept = _distribution(exact, row) > 0
    assert kept[got].all()
    assert len(set(got)) > 256
    assert sum(a != _expected(exact, r) for a, r in zip(got, rows, strict=True)) <= 2


def test_logprobs_are_those_of_the_unmodified_distribution() -> None:
    logits = _logits(4, num_rows=3)
    logits[2, [3, 9]] = 50.0  # equals
    edits = LogitEdits(logit_bias=((11, 100.0),))
    rows = [
        SamplingRow(num_logprobs=0, edits=edits),
        GREEDY,
        SamplingRow(temperature=0.5, num_logprobs=3),
    ]
    got = sample(logits, rows)
    exact = torch.log_softmax(logits.to(torch.float64), dim=-1)
    assert set(got.scores) == {0, 2}
    assert got.scores[0].token_id == 11 and got.scores[0].top == ()
    assert got.scores[0].logprob == pytest.approx(exact[0, 11].item(), abs=1e-5)
    assert [token for token, _ in got.scores[2].top[:2]] == [3, 9]
    assert [lp for _, lp in got.scores[2].top] == pytest.approx(exact[2].topk(3).values.tolist(), abs=1e-5)


def _rows() -> st.SearchStrategy[SamplingRow]:
    token = st.integers(0, VOCAB - 1)
    edits = st.builds(
        LogitEdits,
        repetition_penalty=st.sampled_from([1.0, 1.05, 0.5, 2.0]),
        presence_penalty=st.sampled_from([0.0, -2.0, 1.0]),
        frequency_penalty=st.sampled_from([0.0, -0.5, 1.0]),
        logit_bias=st.lists(st.tuples(token, st.floats(-100, 100)), max_size=3).map(tuple),
        forbidden_token_ids=st.lists(token, max_size=3).map(tuple),
        history=st.lists(token, max_size=12).map(tuple),
        num_prompt_tokens=st.integers(0, 6),
    )
    return st.builds(
        SamplingRow,
        temperature=st.sampled_from([0.0, 1e-45, 1e-3, 0.6, 1.0, 5.0, 1e30]),
        top_k=st.sampled_from([0, 0, 1, 2, VOCAB - 1, VOCAB, 10**9]),
        top_p=st.sampled_from([0.0, 1e-9, 0.5, 0.95, 0.9999999, 1.0, 1.0]),
        min_p=st.sampled_from([0.0, 0.0, 1e-6, 0.2, 1.0]),
        seed=st.integers(-(2**65), 2**65),
        sequence_index=st.integers(0, 100),
        output_index=st.integers(0, 10**6),
        num_logprobs=st.sampled_from([None, None, 0, 2, 100]),
        edits=st.one_of(st.none(), edits),
    )


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(_rows(), min_size=1, max_size=6), seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1.0, 1e4])
)
def test_a_token_does_not_depend_on_its_batch(rows: list[SamplingRow], seed: int, scale: float) -> None:
    logits = _logits(seed, num_rows=len(rows)) * scale
    together = sample(logits, rows)
    for r, row in enumerate(rows):
        alone = sample(logits[r : r + 1], [row])
        assert together.token_ids[r] == alone.token_ids[0], f"row {r}: {row}"
        assert together.scores.get(r) == alone.scores.get(0), f"row {r}: {row}"
        assert together.errors.get(r) == alone.errors.get(0), f"row {r}: {row}"
        assert 0 <= alone.token_ids[0] < VOCAB


@pytest.mark.parametrize("vocab", [1001, 16_384])
def test_a_wide_row_has_the_same_bits_in_any_batch(vocab: int) -> None:
    """Vector and tail lanes, thread splits: log-probabilities are equal to the last bit, and so are the tokens."""
    num_rows = 33
    logits = _logits(8, num_rows=num_rows, vocab=vocab)
    kinds = [
        SamplingRow(temperature=1.0, num_logprobs=2),
        SamplingRow(temperature=0.8, top_p=0.97, num_logprobs=0),
        SamplingRow(temperature=1.5, top_k=300, min_p=0.001),
    ]
    rows = [dataclasses.replace(kinds[r % 3], seed=r) for r in range(num_rows)]
    together = sample(logits, rows)
    for r in range(num_rows):
        alone = sample(logits[r : r + 1].clone(), [rows[r]])
        assert together.token_ids[r] == alone.token_ids[0]
        assert together.scores.get(r) == alone.scores.get(0)


def test_seed_sequence_and_position_each_change_the_draw() -> None:
    row = SamplingRow(temperature=1.0)
    flat = torch.zeros(1, 100_000)
    variants = [
        row,
        dataclasses.replace(row, seed=1),
        dataclasses.replace(row, sequence_index=1),
        dataclasses.replace(row, output_index=1),
    ]
    tokens = [sample(flat, [variant]).token_ids[0] for variant in variants]
    assert len(set(tokens)) == 4
    assert tokens == [sample(flat, [variant]).token_ids[0] for variant in variants]
