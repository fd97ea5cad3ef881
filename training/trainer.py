"""The training loop of one phase: the trunk, or the MTP layer over a frozen trunk."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import save_checkpoint
from training.corpus import Rows, Sampler
from training.loss import next_token_loss
from training.net import Net, causal_mask
from training.optim import Optimisers, balance, load_skew, make_optimisers
from training.schedule import Budget, is_front_door, learning_rate_scale, shares

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a phase does and how often it speaks and saves."""

    part: str  # "trunk" or "mtp"
    budget: Budget
    rows: int = 16
    out: Path
    checkpoint_every_s: float = 300.0
    log_every: int = 20


@dataclass(slots=True)
class Progress:
    """Where a phase stands; `elapsed_s` counts training time over all runs."""

    step: int = 0
    elapsed_s: float = 0.0
    tokens: int = 0
    losses: list[float] = field(default_factory=list)


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The boolean mask as 0 / −inf: the CPU's fused attention takes that faster."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, float("-inf"))


def trunk_loss(net: Net, rows: Rows, *, answers_only: bool) -> torch.Tensor:
    """Next-token loss of the trunk."""
    mask = additive(causal_mask(rows.segments), net.dtype)
    hidden = net.hidden(rows.inputs, mask)
    return next_token_loss(hidden, net.head, rows.targets, rows.is_answer if answers_only else rows.is_text)


def mtp_loss(net: Net, rows: Rows) -> torch.Tensor:
    """Loss of the MTP layer on what the trunk itself would say next but one, within answers.

    The trunk's best token is the label, not the text's: a draft is accepted when the trunk agrees. The trunk is frozen.
    """
    mask = additive(causal_mask(rows.segments), net.dtype)
    with torch.no_grad():
        hidden = net.hidden(rows.inputs, mask)
        is_wanted = rows.is_answer[:, 1:]
        labels = rows.targets[:, 1:].clone()
        labels[is_wanted] = net.logits(hidden[:, 1:][is_wanted]).argmax(-1)
    drafted = net.draft_hidden(rows.inputs, hidden, mask)
    return next_token_loss(drafted[:, :-1], net.head, labels, is_wanted)


class Trainer:
    """One phase, step by step."""

    def __init__(self, net: Net, sampler: Sampler, plan: Plan, log: Log) -> None:
        self.net, self.sampler, self.plan, self.log = net, sampler, plan, log
        self.at = Progress()
        self.optimisers: Optimisers = make_optimisers(net, part=plan.part)
        self.blocks = net.moe_blocks()[-1:] if plan.part == "mtp" else net.moe_blocks()[:-1]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the phase depends on."""
        return {
            "part": self.plan.part,
            "net": self.net.state_dict(),
            "optimisers": self.optimisers.state_dict(),
            "sampler": self.sampler.state_dict(),
            "step": self.at.step,
            "elapsed_s": self.at.elapsed_s,
            "tokens": self.at.tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same phase."""
        self.net.load_state_dict(state["net"])
        self.optimisers.load_state_dict(state["optimisers"])
        self.sampler.load_state_dict(state["sampler"])
        self.at = Progress(state["step"], state["elapsed_s"], state["tokens"])

    def progress(self) -> float:
        """Fraction of the phase's budget used."""
        return self.plan.budget.progress(elapsed_s=self.at.elapsed_s, step=self.at.step)

    def step(self) -> float:
        """One batch, one update; returns the loss in nats."""
        done = self.progress()
        rows = self.sampler.batch(self.plan.rows, shares(1.0 if self.plan.part == "mtp" else done))
        if self.plan.part == "mtp":
            loss = mtp_loss(self.net, rows)
        else:
            loss = trunk_loss(self.net, rows, answers_only=is_front_door(done))
        loss.backward()
        scale = learning_rate_scale(done)
        self.optimisers.step(scale)
        balance(self.blocks, scale)
        self.at.step += 1
        self.at.tokens += rows.inputs.numel()
        return loss.item()

    def run(self, report: Callable[[], None] | None = None) -> None:
        """Train until the budget is used; `report` is called after every checkpoint."""
        last_save = last = time.monotonic()
        while self.progress() < 1.0:
            loss = self.step()
            assert math.isfinite(loss), f"loss is {loss} at step {self.at.step}"
            now = time.monotonic()
            self.at.elapsed_s += now - last
            last = now
            self.at.losses.append(loss)
            if self.at.step % self.plan.log_every == 0:
                self._log()
            if now - last_save >= self.plan.checkpoint_every_s:
                self.save()
                if report:
                    report()
                last_save = last = time.monotonic()
        self.save()

    def save(self) -> None:
        """Write a checkpoint."""
        path = save_checkpoint(self.plan.out, self.plan.part, self.at.step, self.state_dict())
        self.log(f"checkpoint={path.name}")

    def _log(self) -> None:
        at, recent = self.at, self.at.losses[-self.plan.log_every :]
        self.log(
            f"part={self.plan.part} step={at.step} done={self.progress():.1%} loss={sum(recent) / len(recent):.3f} "
            f"tokens={at.tokens / 1e6:.2f}M tokens_per_s={at.tokens / max(at.elapsed_s, 1e-9):.0f} "
            f"load_max_over_mean={load_skew(self.blocks):.2f}"
        )
        del at.losses[: -self.plan.log_every]
