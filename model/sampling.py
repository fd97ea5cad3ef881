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

from kernels.sample import DrawSettings, draw_probabilities, draw_tokens
from model.logprobs import TokenScore, score_tokens
from model.penalties import LogitEdits, edit_logits
from model.proposal_sizes import VERIFIED_AT_ONCE
from model.proposals import Proposal, accept_or_replace
from model.random_numbers import Stream, uniforms
from model.token_ranking import best_tokens


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
    proposal: Proposal | None = None  # the draft for this row, where it was drawn and is verified by rejection sampling

    @property
    def is_plain(self) -> bool:
        """Whether the highest logit is the whole answer."""
        return self.temperature == 0.0 and self.edits is None and self.num_logprobs is None


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
        chosen = _draw(edited if len(drawn) == len(rows) else edited[drawn], [rows[r] for r in drawn])
        for r, token_id in zip(drawn, chosen, strict=True):
            token_ids[r] = token_id
    proposed = [r for r in drawn if rows[r].proposal is not None]
    if proposed:
        for r, token_id in zip(proposed, _verify(edited[proposed], [rows[r] for r in proposed]), strict=True):
            token_ids[r] = token_id
    return Sampled(token_ids=token_ids, scores=_scores(logits, rows, token_ids, errors), errors=errors)


def _not_finite(best: list[float]) -> dict[int, str]:
    """The rows whose highest logit is NaN or infinite; a lone -inf is merely an impossible token."""
    return {row: no_finite_logits(value) for row, value in enumerate(best) if not math.isfinite(value)}


def no_finite_logits(best: float) -> str:
    """What is wrong with a row whose highest logit this is."""
    return f"no finite logits (the highest is {best})"


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


def _draw(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Draw one token for each row of edited logits [R, V]; all temperatures are positive, every maximum is finite."""
    token_ids: list[int] = draw_tokens(logits, draw_settings(rows, logits.device)).tolist()
    return token_ids


def _verify(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Each row's draft, or what replaces it; rows as in `_draw`, all with proposals.

    A few rows at a time: each needs several copies of a distribution in fp64.
    """
    token_ids: list[int] = []
    for start in range(0, len(rows), VERIFIED_AT_ONCE):
        some = rows[start : start + VERIFIED_AT_ONCE]
        edited = logits[start : start + VERIFIED_AT_ONCE]
        settings = draw_settings(some, logits.device)
        token_ids += accept_or_replace(
            draw_probabilities(edited, settings),
            [row.proposal for row in some if row.proposal is not None],
            accept_points=points_of(some, Stream.ACCEPT, logits.device),
            points=settings.points,
        )
    return token_ids


def draw_settings(rows: Sequence[SamplingRow], device: torch.device, stream: Stream = Stream.TOKEN) -> DrawSettings:
    """The settings of the rows as the draw takes them, with the rows' numbers from the stream."""
    return DrawSettings(
        temperature=torch.tensor([row.temperature for row in rows], dtype=torch.float32, device=device),
        top_k=torch.tensor([row.top_k for row in rows], dtype=torch.int64, device=device),
        top_p=torch.tensor([row.top_p for row in rows], dtype=torch.float64, device=device),
        min_p=torch.tensor([row.min_p for row in rows], dtype=torch.float32, device=device),
        points=points_of(rows, stream, device),
    )


def points_of(rows: Sequence[SamplingRow], stream: Stream, device: torch.device) -> torch.Tensor:
    """Each row's own number of the stream, fp64 [R]."""
    seeds, sequences = [row.seed for row in rows], [row.sequence_index for row in rows]
    return torch.from_numpy(uniforms(seeds, sequences, [row.output_index for row in rows], stream)).to(device)
