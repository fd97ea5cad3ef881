"""Which of the model's tokens a head can draft."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.tokenizer import Tokenizer


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


def always_drafted(tokenizer: Tokenizer, ends: Iterable[int], talked: Iterable[int]) -> set[int]:
    """Tokens that no text goes without, however little was counted: ends, the template's, digits and punctuation.

    `talked`: every token of the talks, prompts included. Source: speculative-decoding notes §6.
    """
    template = tokenizer.special_ids & set(talked)
    signs = {token_id for token_id, piece in tokenizer.shown.items() if _is_sign(piece)}
    return signs | template | set(ends)


def _is_sign(piece: bytes) -> bool:
    """One digit or one punctuation mark, perhaps behind a space."""
    try:
        text = piece.decode().removeprefix(" ")
    except UnicodeDecodeError:
        return False
    return len(text) == 1 and unicodedata.category(text)[0] in "NP"


def choose_vocabulary(counts: NDArray[np.int64], size: int, forced: Iterable[int] = ()) -> Vocabulary:
    """The `forced` tokens (see `always_drafted`) and the most frequent others, ties to the lower id.

    counts [V]: how often the model said each token. Raises ValueError for fewer than are forced.
    """
    wanted = sorted(set(forced))
    if not len(wanted) <= size <= len(counts):
        raise ValueError(f"--vocab-size: {size} is not allowed: {len(wanted)} to {len(counts)} are")
    taken = np.zeros(len(counts), dtype=bool)
    taken[wanted] = True
    for token in np.argsort(-counts, kind="stable"):
        if taken.sum() == size:
            break
        taken[token] = True
    total = int(counts.sum())
    return Vocabulary(torch.from_numpy(np.flatnonzero(taken)), float(counts[taken].sum()) / total if total else 0.0)
