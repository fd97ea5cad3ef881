"""The draw as its stages read, over the whole vocabulary sorted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kernels.sample import DrawSettings


def draw_tokens(logits: torch.Tensor, settings: DrawSettings) -> torch.Tensor:
    """Logits [R, V] fp32 -> ids [R] int64."""
    if not len(logits):
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    order, mass = _masses(logits, settings)
    return order.gather(1, invert(mass, settings.points)[:, None]).squeeze(1)


def probabilities(logits: torch.Tensor, settings: DrawSettings) -> torch.Tensor:
    """Logits [R, V] fp32 -> what `draw_tokens` draws from, by id: [R, V] fp64, each row's sum 1."""
    if not len(logits):
        return torch.empty(logits.shape, dtype=torch.float64, device=logits.device)
    order, mass = _masses(logits, settings)
    return torch.zeros_like(mass).scatter_(1, order, mass / mass.sum(dim=-1, keepdim=True))


def _masses(logits: torch.Tensor, settings: DrawSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids in the order of each row's distribution function [R, V], and their masses [R, V] fp64, 0 where left out."""
    # Shifted first: a small temperature may then overflow to -inf only, never to NaN. softmax and the two exact
    # operations before it treat each row by itself, so its bits do not depend on the batch (torch.exp's would).
    shifted = logits - logits.amax(dim=-1, keepdim=True)
    probs = torch.softmax(shifted.div_(settings.temperature[:, None]), dim=-1)
    is_ranked = ((settings.top_k < logits.shape[1]) | (settings.top_p < 1.0))[:, None]
    order = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    if bool(is_ranked.any()):
        order = torch.where(is_ranked, logits.argsort(dim=-1, descending=True, stable=True), order)
    mass = probs.gather(1, order).to(torch.float64)
    kept = mass >= mass.amax(dim=-1, keepdim=True) * settings.min_p[:, None]
    kept &= ~is_ranked | _limit(mass, settings)
    return order, mass.masked_fill_(~kept, 0.0)


def _limit(mass: torch.Tensor, settings: DrawSettings) -> torch.Tensor:
    """What top-k keeps of sorted masses [R, V], and of that top-p: the tokens above which top_p is not reached yet."""
    in_top_k = torch.arange(mass.shape[1], device=mass.device) < settings.top_k[:, None]
    below = (mass * in_top_k).cumsum(dim=-1)
    top_p = settings.top_p[:, None]
    nucleus = torch.where(top_p < 1.0, top_p * below[:, -1:], torch.inf)
    in_nucleus = below - mass < nucleus
    in_nucleus[:, 0] = True
    return in_top_k & in_nucleus


def invert(mass: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Masses [R, V] fp64, points [R] fp64 in [0, 1) -> columns [R].

    A row's column is the one in which its row's distribution function passes its point; never one without mass. Of
    masses that are no finite numbers it means nothing, but is one.
    """
    cumulative = mass.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    column = torch.searchsorted(cumulative, points[:, None] * total, right=True)
    # The product can round up to the total, which no column passes: then the last with mass is meant.
    column = torch.minimum(column, torch.searchsorted(cumulative, total)).squeeze(1)
    return column.clamp_max_(mass.shape[1] - 1)  # no column passes NaN
