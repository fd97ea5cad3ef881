"""Token files and the sampler that packs whole documents into rows."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from training.chat import Document, render

ANSWER_BIT = np.uint16(0x8000)  # set on tokens that the assistant says; the vocabulary is far below 2^15
LOOKAHEAD = 48  # documents among which the one that fits a row's rest is sought: 1-2% padding instead of 15%


@dataclass(frozen=True, slots=True)
class Group:
    """Documents of one kind, end to end: tokens [N] uint16 with ANSWER_BIT, offsets [D + 1]."""

    tokens: NDArray[np.uint16]
    offsets: NDArray[np.int64]
    num_bytes: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def document(self, index: int) -> NDArray[np.uint16]:
        """Tokens of one document."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def encode_group(documents: Iterable[Document], tokenizer: Tokenizer) -> Group:
    """Frame and tokenise; `num_bytes` counts the text of the answers alone."""
    pieces = [render(d.system, d.turns) for d in documents]
    encoded = iter(tokenizer.encode_batch_fast([text for p in pieces for text, _ in p]))
    arrays, offsets, num_bytes = [], [0], 0
    for document in pieces:
        length = 0
        for text, is_answer in document:
            ids = np.asarray(next(encoded).ids, dtype=np.uint16)
            arrays.append(ids | ANSWER_BIT if is_answer else ids)
            length += len(ids)
            num_bytes += len(text.encode()) if is_answer else 0
        offsets.append(offsets[-1] + length)
    tokens = np.concatenate(arrays) if arrays else np.zeros(0, np.uint16)
    return Group(tokens, np.asarray(offsets, dtype=np.int64), num_bytes)


def save_group(group: Group, folder: Path, name: str) -> None:
    """Write `<name>.tokens.npy`, `<name>.offsets.npy` and `<name>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.tokens.npy", group.tokens)
    np.save(folder / f"{name}.offsets.npy", group.offsets)
    about = {"documents": len(group), "tokens": len(group.tokens), "answer_bytes": group.num_bytes}
    (folder / f"{name}.json").write_text(json.dumps(about) + "\n")


def load_group(folder: Path, name: str) -> Group:
    """Inverse of `save_group`."""
    about = json.loads((folder / f"{name}.json").read_text())
    tokens, offsets = (np.load(folder / f"{name}.{part}.npy") for part in ("tokens", "offsets"))
    return Group(tokens, offsets, about["answer_bytes"])


@dataclass(frozen=True, slots=True)
class Rows:
    """One packed batch: inputs, targets, segments [B, S] int64; is_text and is_answer [B, S] mark wanted targets."""

    inputs: Tensor
    targets: Tensor
    segments: Tensor
    is_text: Tensor
    is_answer: Tensor


class Sampler:
    """Endless rows from several groups: each group shuffled anew every epoch, shares kept in tokens."""

    def __init__(self, groups: Mapping[str, Group], *, row: int, pad: int, seed: int) -> None:
        self.groups, self.row, self.pad, self.seed = dict(groups), row, pad, seed
        self.cursor = dict.fromkeys(self.groups, 0)
        self.shares: dict[str, float] = {}
        self.served = dict.fromkeys(self.groups, 0)
        self.waiting: list[tuple[str, int]] = []
        self._orders: dict[tuple[str, int], NDArray[np.int64]] = {}

    def state_dict(self) -> dict[str, Any]:
        """All that the stream depends on."""
        return {
            "cursor": dict(self.cursor),
            "shares": dict(self.shares),
            "served": dict(self.served),
            "waiting": list(self.waiting),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; documents gone since (a rebuilt corpus) are dropped."""
        self.cursor.update({k: v for k, v in state["cursor"].items() if k in self.groups})
        self.shares = dict(state["shares"])
        self.served.update({k: v for k, v in state["served"].items() if k in self.groups})
        self.waiting = [(g, i) for g, i in state["waiting"] if g in self.groups and i < len(self.groups[g])]

    def batch(self, num_rows: int, shares: Mapping[str, float]) -> Rows:
        """The next `num_rows` rows, groups drawn in proportion to `shares`."""
        if shares != self.shares:  # a new phase: count its shares from here
            self.shares, self.served = dict(shares), dict.fromkeys(self.groups, 0)
        tokens = np.full((num_rows, self.row + 1), self.pad, dtype=np.uint16)
        segments = np.full((num_rows, self.row + 1), -1, dtype=np.int64)
        for r in range(num_rows):
            self._fill(tokens[r], segments[r], shares)
        return make_rows(tokens, segments)

    def _fill(self, tokens: NDArray[np.uint16], segments: NDArray[np.int64], shares: Mapping[str, float]) -> None:
        used = number = 0
        while True:
            self._refill(shares)
            lengths = [min(len(self.groups[g].document(i)), len(tokens)) for g, i in self.waiting]
            pick = next((n for n, length in enumerate(lengths) if length <= len(tokens) - used), None)
            if pick is None:
                return
            group, index = self.waiting.pop(pick)
            document = self.groups[group].document(index)[: len(tokens)]
            tokens[used : used + len(document)] = document
            segments[used : used + len(document)] = number
            used, number = used + len(document), number + 1

    def _refill(self, shares: Mapping[str, float]) -> None:
        while len(self.waiting) < LOOKAHEAD:
            name = min(shares, key=lambda g: self.served[g] / shares[g])
            index = self._draw(name)
            self.served[name] += len(self.groups[name].document(index))
            self.waiting.append((name, index))

    def _draw(self, name: str) -> int:
        size = len(self.groups[name])
        epoch, place = divmod(self.cursor[name], size)
        self.cursor[name] += 1
        if (name, epoch) not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[0] != name}
            key = [self.seed, epoch, *name.encode()]
            self._orders[name, epoch] = np.random.default_rng(key).permutation(size)
        return int(self._orders[name, epoch][place])


def make_rows(tokens: NDArray[np.uint16], segments: NDArray[np.int64]) -> Rows:
    """tokens, segments [B, S + 1] → inputs and shifted targets; a target counts only within its own document."""
    is_inside = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] >= 0)
    is_answer = is_inside & ((tokens[:, 1:] & ANSWER_BIT) != 0)
    ids = torch.from_numpy((tokens & ~ANSWER_BIT).astype(np.int64))
    return Rows(
        inputs=ids[:, :-1].contiguous(),
        targets=ids[:, 1:].contiguous(),
        segments=torch.from_numpy(segments[:, :-1].copy()),
        is_text=torch.from_numpy(is_inside),
        is_answer=torch.from_numpy(is_answer),
    )
