"""The choice of experts as its formula reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kernels.gate import GateShape


def choose(logits: torch.Tensor, bias: torch.Tensor, shape: GateShape) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [T, E] fp32 -> ids [T, K] int32, weights [T, K] fp32."""
    scores = torch.sigmoid(logits)
    biased = (scores + bias).nan_to_num(nan=float("-inf")).unflatten(1, (shape.num_expert_groups, -1))
    group_scores = biased.topk(2, -1).values.sum(-1)
    # A stable descending sort puts the lower id first among equals, which topk does not promise.
    kept = group_scores.argsort(dim=-1, descending=True, stable=True)[:, : shape.topk_groups]
    is_dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, kept, False)
    limited = biased.masked_fill(is_dropped[..., None], float("-inf")).flatten(1)
    ids = limited.argsort(dim=-1, descending=True, stable=True)[:, : shape.top_k]
    weights = scores.gather(1, ids)
    if shape.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids.int(), weights * shape.scale
