"""Training-time test: chains of drafts from every row at once, their losses, and how far they would be accepted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

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


class Teacher:
    """Knows for each batch what the model captured and what it would say."""

    def __init__(self, model: TargetModel, vocabulary: Vocabulary, capture_layers: tuple[int, ...]) -> None:
        self._model = model
        self._ids = vocabulary.ids
        self._places = vocabulary.places(model.config.vocab_size)
        self._capture_layers = capture_layers

    def chains(self, net: DraftNet, batch: TalkBatch, num_steps: int) -> Chains:
        """Run `num_steps` steps from every row.

        The row of position i learns the token at i + 2 + m from the model's distribution at i + 1 + m, where that
        token is the answer's; what the model finds likeliest must be in the draft vocabulary. The token of each step
        is the true one: a draft that differs from it ends the chain anyway.
        """
        captured, hidden = self._model.states(batch.tokens, batch.lengths, self._capture_layers)
        length = batch.tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        states, past = net.fuse(captured), KeysValues()
        chains = Chains([], [], [])
        for number in range(num_steps):
            embedded = embedding(_shifted(batch.tokens, number + 1), self._model.embedding)
            states = net.step(states, embedded, number, past, mask)
            wanted = self._wanted(batch, number)
            loss, drafts = self._learn(net, states[wanted], _shifted(hidden, number + 1)[wanted])
            chains.drafts.append(torch.full_like(batch.tokens, -1).masked_scatter_(wanted, drafts))
            chains.wanted.append(wanted)
            chains.losses.append(loss)
        return chains

    def _learn(self, net: DraftNet, states: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and drafts of some rows: the head's states [N, H] and the model's [N, H] one position on."""
        said = self._model.logits(hidden)
        logits = net.logits(states)
        drafts = self._ids[logits.detach().argmax(-1)]
        can_be_drafted = self._places[said.argmax(-1)] >= 0
        if not can_be_drafted.any():
            return logits.sum() * 0.0, drafts
        target = said[can_be_drafted][:, self._ids].softmax(-1)
        return -(target * logits[can_be_drafted].log_softmax(-1)).sum(-1).mean(), drafts

    def _wanted(self, batch: TalkBatch, number: int) -> Tensor:
        """Rows whose draft of this step is a token of the answer."""
        drafted_at = torch.arange(batch.tokens.shape[1])[None] + number + 2
        return (drafted_at >= batch.answer_starts[:, None] + 1) & (drafted_at < batch.lengths[:, None])


def rounds(batch: TalkBatch, chains: Chains) -> Iterator[int]:
    """Drafts accepted in each round, as an engine would go through the answers with as many drafts as there are steps.

    Rounds begin where the one before ended, so hard places are met more often than an average over places counts them.
    The first token of an answer comes with the prompt; a round's root is the last token known.
    """
    num_steps = len(chains.drafts)
    hits = [drafts == _shifted(batch.tokens, number + 2) for number, drafts in enumerate(chains.drafts)]
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
