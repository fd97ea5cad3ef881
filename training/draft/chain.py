"""Training-time test: chains of drafts from every row at once, their losses, and how far they would be accepted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from training.draft.loss import distillation_loss
from training.draft.net import DraftNet, KeysValues
from training.draft.target import TargetModel
from training.draft.vocabulary import Vocabulary

DECAY = 0.8  # weight of each further step in the loss


@dataclass(frozen=True, slots=True)
class TalkBatch:
    """Talks side by side: tokens [B, S] int64 (0 past the end), lengths [B], answer_starts [B]."""

    tokens: Tensor
    lengths: Tensor
    answer_starts: Tensor

    def to(self, device: torch.device) -> TalkBatch:
        """The same on a device."""
        return TalkBatch(self.tokens.to(device), self.lengths.to(device), self.answer_starts.to(device))


@dataclass(frozen=True, slots=True)
class Chains:
    """What a head makes of a batch. Entry m of each: step m of the chains.

    drafts [B, S]: the model's id of the draft for position i + 2 + m; wanted [B, S]: rows i that are to learn it;
    losses: mean cross-entropy against the model's own distribution over the draft vocabulary.
    """

    drafts: list[Tensor]
    wanted: list[Tensor]
    losses: list[Tensor]

    @property
    def loss(self) -> Tensor:
        """The steps' losses together."""
        return torch.stack([loss * DECAY**number for number, loss in enumerate(self.losses)]).sum()


@dataclass(frozen=True, slots=True)
class _Said:
    """What the model says in the answers of a batch, of which every step of the chains learns a part.

    talks, positions [N] int64: where it is said, a row in front of the token; target [N, Vd] over the draft vocabulary;
    can_be_drafted [N]: whether what the model finds likeliest is in that.
    """

    talks: Tensor
    positions: Tensor
    target: Tensor
    can_be_drafted: Tensor


class Teacher:
    """Knows for each batch what the model captured and what it would say."""

    def __init__(self, model: TargetModel, vocabulary: Vocabulary, capture_layers: tuple[int, ...]) -> None:
        self.vocabulary = vocabulary
        self._model = model
        self._ids = vocabulary.ids.to(model.device)
        self._places = vocabulary.places(model.config.vocab_size).to(model.device)
        self._capture_layers = capture_layers

    def chains(self, net: DraftNet, batch: TalkBatch, num_steps: int) -> Chains:
        """Run `num_steps` steps from every row.

        The row of position i learns the token at i + 2 + m from the model's distribution at i + 1 + m, where that
        token is the answer's; what the model finds likeliest must be in the draft vocabulary. The token of each step
        is the true one: a draft that differs from it ends the chain anyway.
        """
        captured, hidden = self._model.states(batch.tokens, batch.lengths, self._capture_layers)
        batch = batch.to(hidden.device)
        said = self._said(batch, hidden)
        states, past = net.fuse(captured), KeysValues()
        chains = Chains([], [], [])
        for number in range(num_steps):
            embedded = embedding(_shifted(batch.tokens, number + 1), self._model.embedding)
            states = net.step(states, embedded, number, past)
            self._learn(net, states, said, number, chains)
        return chains

    def _said(self, batch: TalkBatch, hidden: Tensor) -> _Said:
        """From the model's normed last states [B, S, H]. The first token of an answer comes with its prompt."""
        at = torch.arange(batch.tokens.shape[1], device=hidden.device)[None]
        in_answer = (at >= batch.answer_starts[:, None]) & (at < batch.lengths[:, None] - 1)
        talks, positions = in_answer.nonzero(as_tuple=True)
        logits = self._model.logits(hidden[talks, positions])
        return _Said(
            talks=talks,
            positions=positions,
            target=logits[:, self._ids].softmax(-1),
            can_be_drafted=self._places[logits.argmax(-1)] >= 0,
        )

    def _learn(self, net: DraftNet, states: Tensor, said: _Said, number: int, chains: Chains) -> None:
        """Add step `number`, whose states [B, S, H] guess what the model says `number` + 1 positions on."""
        rows = said.positions - (number + 1)
        has_begun = rows >= 0  # else the chain would begin in front of the talk
        shape = states.shape[:2]
        picked = states.flatten(0, 1).index_select(0, said.talks * shape[1] + rows.clamp(min=0))
        loss, best = distillation_loss(net.normed(picked), net.head, said.target, said.can_be_drafted & has_begun)
        found = (said.talks[has_begun], rows[has_begun])
        wanted = torch.zeros(shape, dtype=torch.bool, device=states.device)
        wanted[found] = True
        drafts = torch.full(shape, -1, device=states.device)
        drafts[found] = self._ids[best[has_begun]]
        chains.losses.append(loss)
        chains.wanted.append(wanted)
        chains.drafts.append(drafts)


def rounds(batch: TalkBatch, chains: Chains) -> Iterator[int]:
    """Drafts accepted in each round, as an engine would go through the answers with as many drafts as there are steps.

    Rounds begin where the one before ended, so hard places are met more often than an average over places counts them.
    The first token of an answer comes with the prompt; a round's root is the last token known.
    """
    num_steps = len(chains.drafts)
    hits = [drafts.cpu() == _shifted(batch.tokens, number + 2) for number, drafts in enumerate(chains.drafts)]
    accepted = torch.zeros_like(batch.tokens)
    alive = torch.ones_like(batch.tokens, dtype=torch.bool)
    for hit in hits:
        alive = alive & hit
        accepted += alive
    for row in range(len(batch.tokens)):
        known, end = int(batch.answer_starts[row]) + 1, int(batch.lengths[row])
        # An engine drafts no further than the answer may go, and this one ends here.
        while known < end:
            num_accepted = min(int(accepted[row, known - 2]), num_steps, end - known)
            yield num_accepted
            known += num_accepted + 1


def _shifted(rows: Tensor, count: int) -> Tensor:
    """Rows [B, S, ...] moved `count` places to the left, zeros behind."""
    return torch.cat([rows[:, count:], torch.zeros_like(rows[:, :count])], 1)
