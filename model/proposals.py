"""Drafts that were drawn, and standard rejection sampling to verify them.

Source: Leviathan, Kalman, Matias 2022, "Fast Inference from Transformers via Speculative Decoding", algorithm 1.
With p the model's distribution after all of the request's settings and q the one that the draft d was drawn from: d is
accepted with probability min(1, p(d) / q(d)), else replaced by a draw from max(p - q, 0). What comes out is
distributed as p, for any q, as long as q is the very distribution of the draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.sample import draw_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A draft with the distribution that it was drawn from."""

    token_id: int
    chances: torch.Tensor  # [Vd] fp32, of the draft model's own vocabulary
    target_ids: torch.Tensor | None  # [Vd] int64, the token of each of its entries; None where they are the same


def accept_or_replace(
    probabilities: torch.Tensor,
    proposals: Sequence[Proposal],
    *,
    accept_points: torch.Tensor,
    points: torch.Tensor,
) -> list[int]:
    """The token of each row: its draft or the replacement.

    probabilities [R, V] fp64 of the model; accept_points and points [R] fp64 in [0, 1), independent of each other and
    of the drafts. Bytes: about 6 * R * V * 8; FLOP: about 6 * R * V.
    """
    assert len(proposals) == len(probabilities), f"{len(proposals)} proposals for {len(probabilities)} rows"
    drafted = torch.zeros_like(probabilities)
    for row, proposal in enumerate(proposals):
        if proposal.target_ids is None:
            drafted[row] = proposal.chances
        else:
            drafted[row, proposal.target_ids] = proposal.chances.to(drafted.dtype)
    drafts = torch.tensor([proposal.token_id for proposal in proposals], device=probabilities.device)
    picked = drafts[:, None]
    # The draft was drawn, so q > 0; one that the model never yields has p = 0 and is never accepted, since u >= 0.
    is_accepted = accept_points < (probabilities.gather(1, picked) / drafted.gather(1, picked)).squeeze(1)
    left = (probabilities - drafted).clamp_min_(0.0)
    # Nothing is left where p = q; such a draft is only ever rejected by rounding, and a draw from p is then exact.
    left = torch.where(left.sum(dim=-1, keepdim=True) > 0.0, left, probabilities)
    chosen: list[int] = torch.where(is_accepted, drafts, draw_from(left, points)).tolist()
    return chosen
