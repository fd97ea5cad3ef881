"""The random numbers of the coming tokens, made while the device computes the present ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from model.random_numbers import uniforms
from scheduler.plan import SequencePlan

_AHEAD = 16  # output indices of each sequence beyond those that the next step can ask for

FloatArray = npt.NDArray[np.float64]


class Points:
    """Each sequence's own numbers by output index, as far as they are known; what is missing is made when asked for."""

    def __init__(self, max_drafts: int = 0) -> None:
        self._max_drafts = max_drafts
        self._known: dict[tuple[int, int], tuple[int, FloatArray]] = {}  # by seed and index: the first, and the numbers

    def prepare(self, sequences: Sequence[SequencePlan]) -> None:
        """Make what the next step of these sequences will ask for, and forget all others."""
        drawn = [planned for planned in sequences if planned.sampling.temperature]
        # It begins behind up to P drafts and a token, may be moved on by P more, and has up to 1 + P rows.
        needed = 3 * self._max_drafts + 2
        lacking = [place for place, planned in enumerate(drawn) if self._slice(planned, needed) is None]
        counts = [needed + _AHEAD] * len(lacking)
        made = _numbers([drawn[place] for place in lacking], counts)
        fresh = {_key(drawn[place]): (drawn[place].output_index, made[at]) for at, place in enumerate(lacking)}
        self._known = {
            _key(planned): self._known[_key(planned)] for planned in drawn if _key(planned) in self._known
        } | fresh

    def of(self, sequences: Sequence[SequencePlan]) -> FloatArray:
        """Of each sequence the numbers of its rows and P further ones behind them, [T + B * P].

        0 for greedy sequences, which need none.
        """
        counts = [len(planned.token_ids) + self._max_drafts for planned in sequences]
        parts = [
            self._slice(planned, count) if planned.sampling.temperature else np.zeros(count)
            for planned, count in zip(sequences, counts, strict=True)
        ]
        lacking = [place for place, part in enumerate(parts) if part is None]
        made = _numbers([sequences[place] for place in lacking], [counts[place] for place in lacking])
        for place, numbers in zip(lacking, made, strict=True):
            parts[place] = numbers
        return np.concatenate([part for part in parts if part is not None]) if parts else np.zeros(0)

    def _slice(self, planned: SequencePlan, count: int) -> FloatArray | None:
        """The numbers for so many output indices from the present one on; None where not all are known."""
        first, numbers = self._known.get(_key(planned), (0, np.zeros(0)))
        at = planned.output_index - first
        return numbers[at : at + count] if at >= 0 and at + count <= len(numbers) else None


def _key(planned: SequencePlan) -> tuple[int, int]:
    """What the numbers depend on beside the output index."""
    return planned.sampling.seed, planned.sequence_index


def _numbers(sequences: Sequence[SequencePlan], counts: Sequence[int]) -> list[FloatArray]:
    """The first `counts[b]` numbers of each sequence from its present output index on."""
    if not sequences:
        return []
    whole = uniforms(
        [planned.sampling.seed for planned, count in zip(sequences, counts, strict=True) for _ in range(count)],
        [planned.sequence_index for planned, count in zip(sequences, counts, strict=True) for _ in range(count)],
        [planned.output_index + at for planned, count in zip(sequences, counts, strict=True) for at in range(count)],
    )
    return np.split(whole, np.cumsum(counts)[:-1])
