"""How far a head is from the model, in chunks of rows, gradients made on the way forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.loss import CHUNK_ROWS


class DistillationLoss(torch.autograd.Function):
    """Sum over rows of the cross-entropy between distributions and softmax(hidden . head^T).

    A chain of 7 steps over 8,192 rows and 32,000 draft tokens would keep 7 GB of logits and as much again of their
    logarithms. No chunk's outlive it here.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, target: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """From hidden [N, H] and head [Vd, H] of one dtype, target [N, Vd] fp32 and which rows count, [N] fp32.

        Returns the sum, fp32 in nats, and each row's best draft id [N] int64.
        """
        grad_hidden = torch.empty_like(hidden)
        grad_head = torch.zeros(head.shape, device=head.device)
        total = torch.zeros((), device=head.device)
        best = torch.empty(len(hidden), dtype=torch.int64, device=head.device)
        for begin in range(0, len(hidden), CHUNK_ROWS):
            chunk = slice(begin, begin + CHUNK_ROWS)
            logits = (hidden[chunk] @ head.t()).float()
            best[chunk] = logits.argmax(-1)
            log_p = logits.log_softmax(-1)
            total -= ((target[chunk] * log_p).sum(-1) * counts[chunk]).sum()
            grad_logits = log_p.exp_().sub_(target[chunk]).mul_(counts[chunk, None]).to(head.dtype)
            torch.mm(grad_logits, head, out=grad_hidden[chunk])
            grad_head += grad_logits.t() @ hidden[chunk]
        ctx.save_for_backward(grad_hidden, grad_head)
        ctx.mark_non_differentiable(best)
        return total, best

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Scale the gradients that `forward` left."""
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_hidden * grad, grad_head * grad, None, None


def distillation_loss(hidden: Tensor, head: Tensor, target: Tensor, is_counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the rows [N] that count (0 where none does), and every row's best draft id."""
    counts = is_counted.float()
    total, best = DistillationLoss.apply(hidden, head.to(hidden.dtype), target, counts)  # type: ignore[no-untyped-call]
    return total / counts.sum().clamp(min=1.0), best
