"""Which of the model's tokens a head can draft."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """ids [Vd] int64, ascending, the model's; coverage: the share of the counted tokens that are among them."""

    ids: Tensor
    coverage: float

    def places(self, target_vocab_size: int) -> Tensor:
        """The draft id of each of the model's tokens, -1 for those that cannot be drafted; [V] int64."""
        places = torch.full((target_vocab_size,), -1, dtype=torch.int64)
        places[self.ids] = torch.arange(len(self.ids))
        return places


def choose_vocabulary(counts: NDArray[np.int64], size: int, forced: Iterable[int] = ()) -> Vocabulary:
    """The `forced` tokens (ends of text, template) and the most frequent others, ties to the lower id.

    counts [V]: how often the model said each token.
    """
    wanted = sorted(set(forced))
    assert len(wanted) <= size <= len(counts), f"{len(wanted)} forced tokens, {size} wanted of {len(counts)}"
    taken = np.zeros(len(counts), dtype=bool)
    taken[wanted] = True
    for token in np.argsort(-counts, kind="stable"):
        if taken.sum() == size:
            break
        taken[token] = True
    total = int(counts.sum())
    return Vocabulary(torch.from_numpy(np.flatnonzero(taken)), float(counts[taken].sum()) / total if total else 0.0)
