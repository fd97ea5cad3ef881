"""Which rows a pass of the draft model runs, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler.plan import SequencePlan

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRows:
    """The rows of one pass, sequence after sequence; T rows of `len(owners)` sequences."""

    owners: list[int]  # of each sequence, its place in the plan
    ends: list[int]  # of each sequence's rows
    token_ids: npt.NDArray[np.int64]  # [T] the token behind each row's position
    positions: IntArray  # [T]
    slots: IntArray  # [T]
    context_lens: IntArray  # [sequences]
    block_tables: list[Sequence[int]]  # as far as this pass and those behind it use them
    source_rows: npt.NDArray[np.int64]  # [T] rows of the step whose states these start from; none for further passes

    @property
    def num_rows(self) -> int:
        """Rows of all sequences."""
        return len(self.token_ids)


def following_rows(sequences: Sequence[SequencePlan], kept: Sequence[tuple[int, ...]], block_size: int) -> DraftRows:
    """The rows of a step that stay: all of a chunk, of a verification the root and the accepted drafts.

    The token behind row i is the next row's own; behind the last row it is the one sampled, or the prompt's next.
    """
    owners, starts, lengths, first_rows = [], [], [], []
    token_ids: list[int] = []
    at = 0
    for owner, (planned, tokens) in enumerate(zip(sequences, kept, strict=True)):
        if planned.draft_method.has_kv:
            length = len(planned.token_ids) - planned.num_logit_rows + len(tokens)
            after = tokens[-1] if tokens else planned.next_token_id
            if length and after is not None:
                owners.append(owner)
                starts.append(planned.start)
                lengths.append(length)
                first_rows.append(at)
                token_ids.extend(planned.token_ids[1:length])
                token_ids.append(after)
        at += len(planned.token_ids)
    sources = [
        np.arange(first, first + length, dtype=np.int64) for first, length in zip(first_rows, lengths, strict=True)
    ]
    ends = [
        start + length + sequences[o].num_proposals for o, start, length in zip(owners, starts, lengths, strict=True)
    ]
    return _laid_out(
        owners,
        starts,
        lengths,
        token_ids,
        [sequences[owner].block_table[: -(-end // block_size)] for owner, end in zip(owners, ends, strict=True)],
        np.concatenate(sources) if sources else np.zeros(0, dtype=np.int64),
        block_size,
    )


def further_rows(before: DraftRows, places: Sequence[int], token_ids: Sequence[int], block_size: int) -> DraftRows:
    """One row more for some of the sequences of the pass before, with the tokens just drafted."""
    return _laid_out(
        [before.owners[place] for place in places],
        [int(before.context_lens[place]) for place in places],
        [1] * len(places),
        token_ids,
        [before.block_tables[place] for place in places],
        before.source_rows[:0],
        block_size,
    )


def _laid_out(
    owners: list[int],
    starts: Sequence[int],
    lengths: Sequence[int],
    token_ids: Sequence[int],
    block_tables: list[Sequence[int]],
    source_rows: npt.NDArray[np.int64],
    block_size: int,
) -> DraftRows:
    positions, slots, ends = [], [], []
    for start, length, table in zip(starts, lengths, block_tables, strict=True):
        for position in range(start, start + length):
            positions.append(position)
            slots.append(table[position // block_size] * block_size + position % block_size)
        ends.append(len(positions))
    context_lens = np.array([start + length for start, length in zip(starts, lengths, strict=True)], dtype=np.int32)
    return DraftRows(
        owners=owners,
        ends=ends,
        token_ids=np.array(token_ids, dtype=np.int64),
        positions=np.array(positions, dtype=np.int32),
        slots=np.array(slots, dtype=np.int32),
        context_lens=context_lens,
        block_tables=block_tables,
        source_rows=source_rows,
    )
