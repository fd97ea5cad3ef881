"""From a plan to the host's copy of a bucket's inputs, in place; of block tables only what is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.graphs.buckets import Bucket
from engine.graphs.inputs import StepInputs
from engine.graphs.points import Points
from kernels.step.values import StepBefore
from scheduler.plan import UNKNOWN_TOKEN, SequencePlan

Array = npt.NDArray[np.generic]
IntArray = npt.NDArray[np.int32]
NO_SOURCE = -1
_NONE: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class _Written:
    """What a row of the block tables holds."""

    table: Sequence[int]  # whose it is: a sequence gets a new list when it gets new blocks
    num_blocks: int  # leading ones that lie behind the sequence and cannot change


class HostInputs:
    """The host's copy, which the device reads while it copies: not to be filled before the step is through."""

    def __init__(self, bucket: Bucket, inputs: StepInputs, before: StepBefore, block_size: int) -> None:
        self._bucket = bucket
        self._num_places, self._max_drafts = before.num_places, before.max_drafts
        self._block_size = block_size
        self._written: list[_Written | None] = [None] * bucket.num_sequences
        self._of_rows = {name: _array(getattr(inputs, name)) for name in _PADDING}
        self._row_starts, self._context_lens = _array(inputs.row_starts), _array(inputs.context_lens)
        self._num_proposals, self._num_live = _array(inputs.num_proposals), _array(inputs.num_live)
        self._points, self._places = _array(inputs.points), _array(inputs.places)
        self._tables: IntArray = inputs.block_tables.numpy()
        self.clear()

    def clear(self) -> None:
        """A step of nothing but padding."""
        self.fill((), Points(self._max_drafts))

    def fill(self, sequences: Sequence[SequencePlan], points: Points, places: Mapping[int, int] = _NONE) -> None:
        """Lay the sequences' rows out one after the other, padding behind them.

        `places`: by sequence id, the place in the step before of those whose tokens are unknown.
        """
        num_sequences = len(sequences)
        starts = np.fromiter((planned.start for planned in sequences), dtype=np.int32, count=num_sequences)
        lengths = np.fromiter((len(planned.token_ids) for planned in sequences), dtype=np.int32, count=num_sequences)
        ends = np.cumsum(lengths, dtype=np.int32)
        num_rows = int(ends[-1]) if num_sequences else 0
        assert num_sequences <= self._bucket.num_sequences and num_rows <= self._bucket.num_rows, (
            f"{num_sequences} sequences with {num_rows} rows in {self._bucket}"
        )
        self._row_starts[0] = 0
        self._row_starts[1 : 1 + num_sequences] = ends
        self._row_starts[1 + num_sequences :] = num_rows
        self._context_lens[:num_sequences] = starts + lengths
        self._context_lens[num_sequences:] = 0
        self._num_proposals[:num_sequences] = [planned.num_proposals for planned in sequences]
        self._num_proposals[num_sequences:] = 0
        self._num_live[0] = num_rows
        for place, (planned, start, length) in enumerate(zip(sequences, starts, lengths, strict=True)):
            self._fill_table(place, planned, int(start), int(start + length))
        owner = np.repeat(np.arange(num_sequences, dtype=np.int32), lengths)
        numbers = np.arange(num_rows, dtype=np.int32) - (ends - lengths)[owner]  # of each row in its sequence
        self._fill_rows(sequences, lengths, numbers)
        drawn_by = points.of(sequences)
        self._points[: len(drawn_by)] = drawn_by
        rows = self._of_rows
        rows["positions"][:num_rows] = starts[owner] + numbers
        rows["table_rows"][:num_rows] = owner * np.int32(self._tables.shape[1])
        rows["point_rows"][:num_rows] = np.arange(num_rows, dtype=np.int32) + owner * np.int32(self._max_drafts)
        self._fill_places(sequences, owner, numbers, places)

    def _fill_places(
        self, sequences: Sequence[SequencePlan], owner: IntArray, numbers: IntArray, places: Mapping[int, int]
    ) -> None:
        """Where the device finds what the host does not know: see `StepBefore`."""
        nowhere, num_sequences = self._num_places, len(sequences)
        found = [places[planned.sequence_id] if _is_unknown(planned) else nowhere for planned in sequences]
        self._places[:num_sequences] = found
        self._places[num_sequences:] = nowhere
        mine = np.array(found, dtype=np.int32)[owner]
        self._of_rows["row_places"][: len(owner)] = mine
        self._of_rows["row_places"][len(owner) :] = nowhere
        # The first row holds the token behind the accepted drafts, which lies behind all drafts; the others the drafts.
        line = np.where(numbers == 0, self._max_drafts, numbers - 1)
        sources = np.where(mine == nowhere, NO_SOURCE, line * nowhere + mine)
        self._of_rows["token_sources"][: len(owner)] = sources

    def _fill_rows(self, sequences: Sequence[SequencePlan], lengths: IntArray, numbers: IntArray) -> None:
        """What each row holds and how its token is chosen."""
        num_rows = len(numbers)
        params = [planned.sampling for planned in sequences]
        found: dict[str, npt.ArrayLike] = {
            "token_ids": [token for planned in sequences for token in planned.token_ids],
            "is_followed": np.repeat([planned.draft_method.has_kv for planned in sequences], lengths),
        }
        for name in ("temperature", "top_k", "top_p", "min_p"):
            values = np.array([getattr(one, name) for one in params], dtype=self._of_rows[name].dtype)
            found[name] = np.repeat(values, lengths)
        for name, array in self._of_rows.items():
            array[num_rows:] = _PADDING[name]
            if name in found:
                array[:num_rows] = found[name]

    def _fill_table(self, place: int, planned: SequencePlan, start: int, end: int) -> None:
        """Every block that the sequence has, those behind it only once."""
        table, row = planned.block_table, self._tables[place]
        assert len(table) * self._block_size >= end, f"{len(table)} blocks for {end} positions"
        written = self._written[place]
        known = written.num_blocks if written is not None and written.table is table else 0
        row[known : len(table)] = table[known:]
        self._written[place] = _Written(table, start // self._block_size)


def _is_unknown(planned: SequencePlan) -> bool:
    return planned.token_ids[0] == UNKNOWN_TOKEN


_PADDING: dict[str, float] = {
    "token_ids": 0,
    "is_followed": False,
    "token_sources": NO_SOURCE,
    "positions": 0,
    "row_places": 0,
    "table_rows": 0,
    "point_rows": 0,
    "temperature": 0.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
}


def _array(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    array: npt.NDArray[np.generic] = tensor.numpy()
    return array
