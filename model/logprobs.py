"""Log-probabilities of tokens under the unmodified distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.token_ranking import rank_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """One token's log-probability (natural log, fp32) and the most likely tokens at its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability), most likely first


def score_tokens(logits: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenScore]:
    """Score one token per row, with the `num_top[r]` most likely ones beside it.

    logits [R, V] fp32, as the model gave them. `num_top` above V yields V. R = 0 is valid.
    A row with NaN scores NaN.
    """
    if not token_ids:
        return []
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device).unsqueeze(1)).squeeze(1).tolist()
    widest = max(num_top)
    if widest == 0:
        return [TokenScore(token_id=t, logprob=lp) for t, lp in zip(token_ids, chosen, strict=True)]
    # Ranked by logit: rounding in the log-softmax can make equals of two that are not.
    ids = rank_tokens(logits, widest)[1]
    top_ids, top_logprobs = ids.tolist(), logprobs.gather(1, ids).tolist()
    return [
        TokenScore(
            token_id=token_id, logprob=chosen[r], top=tuple(zip(top_ids[r][:n], top_logprobs[r][:n], strict=True))
        )
        for r, (token_id, n) in enumerate(zip(token_ids, num_top, strict=True))
    ]
