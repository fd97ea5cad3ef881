"""Chains of drafts from a draft model, for all sequences of a batch at once.

The first pass runs over the rows that the step leaves in the KV cache, with the model's own states: it overwrites
whatever earlier drafts left there, and its last row of each sequence proposes the first draft. Each further pass runs
one row a sequence, with the state and the draft of the pass before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from engine.drafters.draft_model import DraftModel
from engine.drafters.draft_rows import DraftRows, following_rows, further_rows
from kernels.paged_attention import KVLayer
from model.batch import Batch, ModelOutput
from scheduler.plan import StepPlan

IntArray = npt.NDArray[np.int32]


class ChainDrafter:
    """Runs one draft model with a KV layer of its own in the model's blocks."""

    def __init__(self, model: DraftModel, kv: KVLayer, block_size: int, device: torch.device) -> None:
        self.kv = kv
        self._model = model
        self._block_size = block_size
        self._device = device
        self._nothing = torch.zeros(0, dtype=torch.int64, device=device)
        table = model.target_ids
        self._target_ids: list[int] | None = None if table is None else table.tolist()

    @property
    def capture_layers(self) -> tuple[int, ...]:
        """Layers whose inputs the model's forward pass is to capture."""
        return self._model.capture_layers

    @torch.inference_mode()
    def draft(
        self, plan: StepPlan, batch: Batch, output: ModelOutput, kept: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        """Follow the rows that stay, then propose; returns the drafts of each sequence.

        `kept` holds the tokens that each sequence of the plan got in this step, none inside a prompt.
        """
        drafts: list[list[int]] = [[] for _ in plan.sequences]
        rows = following_rows(plan.sequences, kept, self._block_size)
        if not rows.num_rows and not self._model.is_collective:
            return [()] * len(drafts)
        states = self._model.first_states(output)
        if rows.num_rows < states.shape[0]:
            states = states.index_select(0, self._tensor(rows.source_rows))
        states = self._run(states, batch, rows)
        for number in range(plan.num_draft_passes):
            # The sequences that want a draft more, by their place among the rows' sequences.
            wanting = [place for place, owner in enumerate(rows.owners) if number < plan.sequences[owner].num_proposals]
            if not wanting and not self._model.is_collective:
                break
            if len(wanting) < rows.num_rows:
                last = np.array([rows.ends[place] - 1 for place in wanting], dtype=np.int64)
                states = states.index_select(0, self._tensor(last))
            tokens = self._best(states) if wanting else []
            for place, token in zip(wanting, tokens, strict=True):
                drafts[rows.owners[place]].append(token)
            if number + 1 < plan.num_draft_passes:
                rows = further_rows(plan.sequences, rows, wanting, tokens, self._block_size)
                states = self._run(states, batch, rows)
        return [tuple(ids) for ids in drafts]

    def _run(self, states: torch.Tensor, batch: Batch, rows: DraftRows) -> torch.Tensor:
        """One pass of the draft model."""
        return self._model.forward(
            states,
            Batch(
                token_ids=self._tensor(rows.token_ids),
                positions=self._tensor(rows.positions),
                slots=self._tensor(rows.slots),
                row_starts=self._tensor(np.array([0, *rows.ends], dtype=np.int32)),
                context_lens=self._tensor(rows.context_lens),
                block_tables=self._tables(rows) if rows.owners else batch.block_tables[:0],
                logit_rows=self._nothing,
            ),
            self.kv,
        )

    def _tables(self, rows: DraftRows) -> torch.Tensor:
        width = max(len(table) for table in rows.block_tables)
        tables = np.zeros((len(rows.block_tables), width), dtype=np.int32)
        for place, table in enumerate(rows.block_tables):
            tables[place, : len(table)] = table
        return self._tensor(tables)

    def _best(self, states: torch.Tensor) -> list[int]:
        """The likeliest token after each state."""
        best: list[int] = self._model.logits(states).argmax(dim=-1).tolist()
        return best if self._target_ids is None else [self._target_ids[place] for place in best]

    def _tensor(self, array: IntArray | npt.NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)
