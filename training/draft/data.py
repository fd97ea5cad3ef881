"""Batches of talks: of like length side by side, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from training.draft.answers import Talk
from training.draft.chain import TalkBatch
from training.draft.ranks import Rank


def batches(talks: Sequence[Talk], *, max_tokens: int, max_length: int) -> list[list[Talk]]:
    """Groups of at most `max_tokens` tokens, padding included; longer talks are cut at `max_length`."""
    cut = [Talk(talk.tokens[:max_length], talk.answer_start) for talk in talks if talk.answer_start < max_length - 2]
    ordered = sorted((talk for talk in cut if len(talk.tokens) > talk.answer_start), key=lambda talk: len(talk.tokens))
    groups: list[list[Talk]] = []
    for talk in ordered:
        if groups and (len(groups[-1]) + 1) * len(talk.tokens) <= max_tokens:
            groups[-1].append(talk)
        else:
            groups.append([talk])
    return groups


def collate(talks: Sequence[Talk]) -> TalkBatch:
    """Talks as one batch."""
    tokens = np.zeros((len(talks), max(len(talk.tokens) for talk in talks)), dtype=np.int64)
    for row, talk in enumerate(talks):
        tokens[row, : len(talk.tokens)] = talk.tokens
    return TalkBatch(
        tokens=torch.from_numpy(tokens),
        lengths=torch.tensor([len(talk.tokens) for talk in talks]),
        answer_starts=torch.tensor([talk.answer_start for talk in talks]),
    )


def endless(groups: Sequence[list[Talk]], seed: int, first: int, place: Rank | None = None) -> Iterator[TalkBatch]:
    """A rank's batches from step `first` on, every group once an epoch, each epoch in an order of its own."""
    place = place or Rank()
    number = first * place.size + place.rank
    while True:
        epoch, at = divmod(number, len(groups))
        order = np.random.default_rng([seed, epoch]).permutation(len(groups))
        yield collate(groups[order[at]])
        number += place.size
