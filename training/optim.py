"""Muon for the matrices, AdamW for the rest, and the router-bias rule."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.moe import MoeFfn
from training.net import Net

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic whose five iterations push singular values near 1 (K. Jordan, Muon)
BIAS_STEP = 1e-3  # router bias moved per step, by the sign of the load error


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """Nearly the closest semi-orthogonal matrices: update [..., M, N] → the same shape, fp32. bf16 inside."""
    a, b, c = NEWTON_SCHULZ
    x: Tensor = update.to(torch.bfloat16)
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.mT if is_tall else x
    return x.float()


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalised steps, for parameters that are (stacks of) matrices."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; equally shaped matrices go through Newton–Schulz in one batch."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(tuple(p.shape[-2:]), []).append(p)
            for params in by_shape.values():
                self._step_alike(params, group)

    def _step_alike(self, params: list[nn.Parameter], group: dict[str, Any]) -> None:
        rows, cols = params[0].shape[-2:]
        updates = []
        for p in params:
            assert p.grad is not None
            buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
            buffer.lerp_(p.grad, 1 - group["momentum"])
            updates.append(p.grad.lerp(buffer, group["momentum"]).view(-1, rows, cols))  # Nesterov
        ortho = torch.split(orthogonalise(torch.cat(updates)), [len(u) for u in updates])
        step = group["lr"] * max(1.0, rows / cols) ** 0.5
        for p, o in zip(params, ortho, strict=True):
            p.mul_(1 - group["lr"] * group["decay"]).add_(o.view_as(p), alpha=-step)


@dataclass(frozen=True, slots=True)
class Optimisers:
    """The pair that trains one set of parameters; learning rates scale together."""

    muon: Muon
    adam: torch.optim.AdamW

    def step(self, scale: float) -> None:
        """Update with both base learning rates times `scale`."""
        for optimiser in (self.muon, self.adam):
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * scale
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Both states, for a checkpoint."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def make_optimisers(net: Net, *, part: str, muon_lr: float = 0.02, adam_lr: float = 4e-3) -> Optimisers:
    """Optimisers of the trunk or of the MTP layer; the other part's parameters are frozen."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in net.named_parameters():
        p.requires_grad_(name.startswith("mtp.") == (part == "mtp"))
        if p.requires_grad:
            is_matrix = p.dim() >= 2 and name not in ("embed", "head") and not name.endswith("router")
            (matrices if is_matrix else others).append(p)
    pair = Optimisers(
        Muon(matrices, lr=muon_lr), torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.97), weight_decay=0.0)
    )
    for optimiser, lr in ((pair.muon, muon_lr), (pair.adam, adam_lr)):
        for group in optimiser.param_groups:
            group["base_lr"] = lr
    return pair


@torch.no_grad()
def balance(blocks: Iterable[MoeFfn], scale: float = 1.0) -> None:
    """Raise the selection bias of under-used experts and lower that of over-used ones (no auxiliary loss)."""
    for block in blocks:
        block.expert_bias += BIAS_STEP * scale * torch.sign(block.load.mean() - block.load)


def load_skew(blocks: Iterable[MoeFfn]) -> float:
    """Mean over blocks of the busiest expert's rows over the mean expert's."""
    skews = [float(b.load.max() / b.load.mean().clamp_min(1e-9)) for b in blocks]
    return sum(skews) / len(skews)
