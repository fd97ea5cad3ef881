"""From logits to tokens, one row per sequence, whatever each of them asked for.

The order of the stages: penalties, bias and forbidden tokens (`penalties`); temperature; top-k; top-p; min-p;
softmax in fp32; one draw by inverse distribution function. A row's token depends on its logits and its own
settings alone: never on the other rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.logprobs import TokenScore, score_tokens
from model.penalties import LogitEdits, edit_logits
from model.random_numbers import uniforms
from model.token_ranking import best_tokens, rank_tokens

# The tokens ranked at first where top-p alone limits a row; a row that needs more is sorted whole.
_FIRST_RANKS = 256
_MIN_TEMPERATURE = 1e-30  # keeps the quotient of the best token (0) a number; far below what fp32 can tell from greedy


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingRow:
    """How the token of one row is chosen. The meaning of the fields is that of the request's sampling settings."""

    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    sequence_index: int = 0
    output_index: int = 0
    num_logprobs: int | None = None
    edits: LogitEdits | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the highest logit is the whole answer."""
        return self.temperature == 0.0 and self.edits is None and self.num_logprobs is None

    @property
    def is_ranked(self) -> bool:
        """Whether the draw is among the most likely tokens only."""
        return self.top_k > 0 or self.top_p < 1.0


GREEDY = SamplingRow()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One token per row. The token of a row in `errors` means nothing."""

    token_ids: list[int]
    scores: dict[int, TokenScore]  # by row, for the rows that asked for log-probabilities
    errors: dict[int, str]  # by row


def sample(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> Sampled:
    """Choose one token per row of logits [S, V] fp32. S = 0 is valid.

    Greedy ties go to the lower id. A row whose best logit is not a finite number (before or after its edits) is
    reported in `errors` and leaves the others alone.
    """
    assert logits.shape[0] == len(rows), f"{logits.shape[0]} rows of logits for {len(rows)} settings"
    if not rows:
        return Sampled(token_ids=[], scores={}, errors={})
    edited, errors = edit_logits(logits, [row.edits for row in rows])
    token_ids, best = best_tokens(edited)
    errors = _not_finite(best) | errors
    if all(row.is_plain for row in rows):
        return Sampled(token_ids=token_ids, scores={}, errors=errors)
    drawn = [r for r, row in enumerate(rows) if row.temperature > 0.0 and r not in errors]
    if drawn:
        whole = len(drawn) == len(rows)
        chosen = _draw(edited if whole else edited[drawn], [rows[r] for r in drawn])
        for r, token_id in zip(drawn, chosen, strict=True):
            token_ids[r] = token_id
    return Sampled(token_ids=token_ids, scores=_scores(logits, rows, token_ids, errors), errors=errors)


def _not_finite(best: list[float]) -> dict[int, str]:
    """The rows whose highest logit is NaN or infinite; a lone -inf is merely an impossible token."""
    return {
        row: f"no finite logits (the highest is {value})" for row, value in enumerate(best) if not math.isfinite(value)
    }


def _scores(
    logits: torch.Tensor, rows: Sequence[SamplingRow], token_ids: list[int], errors: dict[int, str]
) -> dict[int, TokenScore]:
    """Log-probabilities from the raw logits, for the sound rows that want them."""
    wanted = [(r, row.num_logprobs) for r, row in enumerate(rows) if row.num_logprobs is not None and r not in errors]
    if not wanted:
        return {}
    where = [r for r, _ in wanted]
    scores = score_tokens(logits[where], [token_ids[r] for r in where], [n for _, n in wanted])
    return dict(zip(where, scores, strict=True))


def _draw(logits: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    """Draw one token for each row of edited logits [R, V]; all temperatures are positive, every maximum is finite."""
    points = uniforms([r.seed for r in rows], [r.sequence_index for r in rows], [r.output_index for r in rows])
    points_t = torch.from_numpy(points).to(logits.device)
    temperature = _column(logits, [max(row.temperature, _MIN_TEMPERATURE) for row in rows])
    # Shifted first: a small temperature may then overflow to -inf only, never to NaN. softmax and the two exact
    # operations before it treat each row by itself, so the bits do not depend on the batch (torch.exp would).
    probs = torch.softmax((logits - logits.amax(dim=-1, keepdim=True)).div_(temperature), dim=-1)
    token_ids = [0] * len(rows)
    for is_ranked, choose in ((False, _from_all), (True, _from_ranked)):
        where = [r for r, row in enumerate(rows) if row.is_ranked is is_ranked]
        if where:
            part = slice(None) if len(where) == len(rows) else where
            chosen = choose(logits[part], probs[part], points_t[part], [rows[r] for r in where])
            for r, token_id in zip(where, chosen, strict=True):
                token_ids[r] = token_id
    return token_ids


def _from_all(logits: torch.Tensor, probs: torch.Tensor, points: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    """Draw from the whole vocabulary, less what min-p drops; the distribution function runs over the token ids."""
    if any(row.min_p > 0.0 for row in rows):
        floor = probs.amax(dim=-1, keepdim=True) * _column(probs, [min(row.min_p, 1.0) for row in rows])
        probs = probs.masked_fill(probs < floor, 0.0)
    chosen: list[int] = _invert(probs.to(torch.float64), points).tolist()
    return chosen


def _from_ranked(logits: torch.Tensor, probs: torch.Tensor, points: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    """Draw from the most likely tokens of each row; the distribution function runs from the likeliest down."""
    vocab_size = logits.shape[-1]
    num_ranks = min(max(_FIRST_RANKS, *(row.top_k for row in rows)), vocab_size)
    token_ids, is_enough = _choose_ranked(logits, probs, points, rows, num_ranks)
    short = [r for r, enough in enumerate(is_enough) if not enough]
    if short:
        again, _ = _choose_ranked(logits[short], probs[short], points[short], [rows[r] for r in short], vocab_size)
        for r, token_id in zip(short, again, strict=True):
            token_ids[r] = token_id
    return token_ids


def _choose_ranked(
    logits: torch.Tensor, probs: torch.Tensor, points: torch.Tensor, rows: list[SamplingRow], num_ranks: int
) -> tuple[list[int], list[bool]]:
    """Draw among the first `num_ranks` tokens; also says for which rows these hold all that top-k and top-p keep."""
    ids = rank_tokens(logits, num_ranks)[1]
    mass = probs.gather(1, ids).to(torch.float64)
    vocab_size = logits.shape[-1]
    top_k = _column(mass, [float(min(row.top_k, vocab_size) or vocab_size) for row in rows])
    mass.masked_fill_(torch.arange(num_ranks, device=mass.device) >= top_k, 0.0)
    below = mass.cumsum(dim=-1)
    # With top-k the nucleus is measured in what top-k left; without it the whole distribution sums to one. The
    # last place summed up must not depend on `num_ranks`, which other rows decide.
    total = torch.where(_column(mass, [float(row.top_k) for row in rows]) > 0.0, below[:, -1:], 1.0)
    nucleus = _column(mass, [row.top_p if row.top_p < 1.0 else 2.0 for row in rows]) * total
    is_enough = (top_k <= num_ranks) | (below[:, -1:] >= nucleus)
    kept = (below - mass) < nucleus  # the mass above a token has not reached top_p yet
    kept[:, 0] = True
    kept &= mass >= mass[:, :1] * _column(mass, [min(row.min_p, 1.0) for row in rows])
    picked = _invert(mass.masked_fill_(~kept, 0.0), points)
    return ids.gather(1, picked.unsqueeze(1)).squeeze(1).tolist(), is_enough.squeeze(1).tolist()


def _invert(mass: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The column in which each row's distribution function passes its point.

    mass [R, C] fp64, not negative, some positive; points [R] in [0, 1); returns [R] int64. Never a column without mass.
    """
    cumulative = mass.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    column = torch.searchsorted(cumulative, points.unsqueeze(1) * total, right=True)
    # The product can round up to the total, which no column passes: then the last with mass is meant.
    last = torch.searchsorted(cumulative, total)
    return torch.minimum(column, last).squeeze(1)


def _column(like: torch.Tensor, values: list[float]) -> torch.Tensor:
    """One value per row [R, 1], of the dtype and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
