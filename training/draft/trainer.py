"""The training loop of a head: optimisers, schedule, checkpoints, evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

from training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from training.draft.chain import TalkBatch, Teacher, rounds
from training.draft.net import DraftNet
from training.draft.ranks import Rank
from training.optim import Muon

NAME = "draft"
_CLIP = 0.5
_WARM_UP_STEPS = 50
_CHECKPOINT_EVERY_S = 120.0
_MUON_LR, _ADAM_LR = 0.015, 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How a head drafts on talks it has not seen. tau: tokens that one verification would yield."""

    tau: float
    accepted: tuple[float, ...]  # by place in a round, the share of rounds that got there
    num_rounds: int

    def __str__(self) -> str:
        accepted = " ".join(f"{share:.1%}" for share in self.accepted)
        return f"tau {self.tau:.3f}, accepted {accepted}, of {self.num_rounds} rounds"


@torch.no_grad()
def evaluate(
    teacher: Teacher, net: DraftNet, talks: Sequence[TalkBatch], num_drafts: int, place: Rank | None = None
) -> Score:
    """Simulated acceptance with chains of `num_drafts`, round by round; all ranks get the same."""
    place = place or Rank()
    reached, num_rounds, num_committed = [0] * num_drafts, 0, 0
    for batch, is_mine in place.dealt(talks):
        chains = teacher.chains(net, batch, num_drafts)  # all ranks, for the experts on each
        for num_accepted in rounds(batch, chains) if is_mine else ():
            num_rounds += 1
            num_committed += num_accepted + 1
            for number in range(num_accepted):
                reached[number] += 1
    num_rounds, num_committed, *reached = place.total([num_rounds, num_committed, *reached])
    assert num_rounds, "no answer is longer than a token"
    accepted = tuple(count / num_rounds for count in reached)
    return Score(tau=num_committed / num_rounds, accepted=accepted, num_rounds=num_rounds)


class Trainer:
    """One head from its first step to its last, over kills. The clock counts training alone."""

    def __init__(
        self,
        net: DraftNet,
        teacher: Teacher,
        *,
        out: Path,
        minutes: float,
        num_steps: int,
        place: Rank | None = None,
    ) -> None:
        self.net = net
        self._place = place or Rank()
        self.step = 0
        self._teacher = teacher
        self._out = out
        self._seconds = 60.0 * minutes
        self._num_steps = num_steps  # of the chains
        self._elapsed_s = 0.0
        matrices = [p for name, p in net.named_parameters() if p.dim() == 2 and name != "head"]
        others = [p for name, p in net.named_parameters() if p.dim() != 2 or name == "head"]
        self._optimisers: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(matrices, lr=_MUON_LR), _MUON_LR),
            (torch.optim.AdamW(others, lr=_ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0), _ADAM_LR),
        ]

    def resume(self) -> bool:
        """Go on from the newest checkpoint in `out`, if there is one. Raises ValueError for another head's."""
        newest = newest_checkpoint(self._out, NAME)
        if newest is None:
            return False
        state = load_checkpoint(newest)
        for name, ours in self._identity().items():
            if state.get("head", {}).get(name) != ours:
                raise ValueError(f"{newest}: trains a head of another {name}; give another --work, or remove it")
        self.net.load_state_dict(state["net"])
        for (optimiser, _), saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self._elapsed_s = state["step"], state["elapsed_s"]
        return True

    def run(self, talks: Iterator[TalkBatch], progress: Progress) -> None:
        """Train to the end of the minutes; a checkpoint every two minutes and at the end."""
        task = progress.add_task("training", total=self._seconds, completed=int(self._elapsed_s))
        saved_s = self._elapsed_s
        while (elapsed_s := self._place.firsts(self._elapsed_s)) < self._seconds:
            started_s = time.monotonic()
            losses = self.learn(next(talks), elapsed_s / self._seconds)
            self._elapsed_s += time.monotonic() - started_s
            shown = " ".join(f"{loss:.2f}" for loss in losses)
            progress.update(task, completed=self._elapsed_s, description=f"step {self.step}, losses {shown}")
            if self._elapsed_s - saved_s > _CHECKPOINT_EVERY_S:
                self.save()
                saved_s = self._elapsed_s
        self.save()

    def learn(self, batch: TalkBatch, done: float) -> list[float]:
        """One step at a point of the schedule (`done`: 0 at the start, 1 at the end); returns the chains' losses."""
        chains = self._teacher.chains(self.net, batch, self._num_steps)
        for optimiser, lr in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr * (min(1.0, self.step / _WARM_UP_STEPS) * (1.0 - done) ** 0.7 + 0.01)
            optimiser.zero_grad(set_to_none=True)
        chains.loss.backward()
        self._place.average_gradients(self.net.parameters())
        nn.utils.clip_grad_norm_(self.net.parameters(), _CLIP)
        for optimiser, _ in self._optimisers:
            optimiser.step()
        self.step += 1
        return [float(loss.detach()) for loss in chains.losses]

    def save(self) -> None:
        """Write a checkpoint: one rank for all."""
        if not self._place.is_first:
            return
        state: dict[str, Any] = {
            "head": self._identity(),
            "net": self.net.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser, _ in self._optimisers],
            "step": self.step,
            "elapsed_s": self._elapsed_s,
        }
        save_checkpoint(self._out, NAME, self.step, state)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made with."""
        return self.net.shape.to_json() | {"vocabulary": self._teacher.vocabulary.ids.tolist()}
