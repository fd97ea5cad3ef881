"""Chains of drafts from a draft model, for all sequences of a batch at once.

The first pass runs over the rows that the step leaves in the KV cache, with the model's own states: it overwrites
whatever earlier drafts left there, and its last row of each sequence proposes the first draft. Each further pass runs
one row a sequence, with the state and the draft of the pass before.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from engine.drafters.draft_model import DraftModel
from engine.drafters.draft_rows import DraftRows, following_rows, further_rows
from engine.drafters.memory import DraftMemory
from engine.sampling_rows import sampling_row
from kernels.paged_attention import KVLayer
from kernels.sample import draw_from, draw_probabilities
from model.batch import Batch, ModelOutput
from model.proposals import Proposal
from model.random_numbers import Stream
from model.sampling import draw_settings
from scheduler.plan import SequencePlan, StepPlan

IntArray = npt.NDArray[np.int32]
_NOT_DRAWN = -1


class ChainDrafter:
    """Runs one draft model with a KV layer of its own in the model's blocks.

    Drafts are the likeliest tokens; with a `memory`, those of sampled sequences are drawn with the request's settings
    (its penalties and bias aside), and what they were drawn from is kept there. A draft model may say anything, numbers
    that are none included: then the draft is the likeliest token again, or any.
    """

    def __init__(
        self,
        model: DraftModel,
        kv: KVLayer,
        block_size: int,
        device: torch.device,
        memory: DraftMemory | None = None,
    ) -> None:
        self.memory = memory
        self.model = model
        self.kv = kv
        self.extend_s = 0.0  # that the last call of `draft` took to follow the rows of its step, first drafts included
        self._block_size = block_size
        self._device = device
        self._nothing = torch.zeros(0, dtype=torch.int64, device=device)
        table = model.target_ids
        self._target_table = table
        self._target_ids: list[int] | None = None if table is None else table.tolist()

    @property
    def capture_layers(self) -> tuple[int, ...]:
        """Layers whose inputs the model's forward pass is to capture."""
        return self.model.capture_layers

    def draft(
        self, plan: StepPlan, batch: Batch, output: ModelOutput, kept: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        """Follow the rows that stay, then propose; returns the drafts of each sequence.

        `kept` holds the tokens that each sequence of the plan got in this step: none inside a prompt, nor where the
        sequence ended with an error, which is not followed either.
        """
        begin_s, self.extend_s = time.perf_counter(), 0.0
        drafts: list[list[int]] = [[] for _ in plan.sequences]
        rows = following_rows(plan.sequences, kept, self._block_size)
        if not rows.num_rows and not self.model.is_collective:
            return [()] * len(drafts)
        states = self.model.first_states(output)
        if rows.num_rows < states.shape[0]:
            states = states.index_select(0, self._tensor(rows.source_rows))
        tables = self._tables(rows) if rows.owners else batch.block_tables[:0]
        states = self._run(states, rows, tables)
        self.extend_s = time.perf_counter() - begin_s
        for number in range(plan.num_draft_passes):
            # The sequences that want a draft more, by their place among the rows' sequences.
            wanting = [place for place, owner in enumerate(rows.owners) if number < plan.sequences[owner].num_proposals]
            if not wanting and not self.model.is_collective:
                break
            if len(wanting) < rows.num_rows:
                last = np.array([rows.ends[place] - 1 for place in wanting], dtype=np.int64)
                states = states.index_select(0, self._tensor(last))
            if len(wanting) < len(rows.owners):
                tables = tables.index_select(0, self._tensor(np.array(wanting, dtype=np.int64)))
            owners = [rows.owners[place] for place in wanting]
            ahead = [len(kept[owner]) + number for owner in owners]
            tokens = self._proposed(states, [plan.sequences[owner] for owner in owners], ahead) if wanting else []
            for owner, token in zip(owners, tokens, strict=True):
                drafts[owner].append(token)
            if not number:
                self.extend_s = time.perf_counter() - begin_s
            if number + 1 < plan.num_draft_passes:
                rows = further_rows(rows, wanting, tokens, self._block_size)
                states = self._run(states, rows, tables)
        return [tuple(ids) for ids in drafts]

    def _proposed(self, states: torch.Tensor, sequences: Sequence[SequencePlan], ahead: Sequence[int]) -> list[int]:
        """A draft for each sequence, `ahead` of its first output index, from its state [S, h]."""
        logits = self.model.logits(states)
        tokens = self._best(logits)
        if self.memory is not None:
            for place, proposal in self._drawn(logits, sequences, ahead).items():
                tokens[place] = tokens[place] if proposal is None else proposal.token_id
                planned = sequences[place]
                self.memory.keep(planned.sequence_id, planned.output_index + ahead[place], proposal)
        return tokens

    def _drawn(
        self, logits: torch.Tensor, sequences: Sequence[SequencePlan], ahead: Sequence[int]
    ) -> dict[int, Proposal | None]:
        """Drafts for the rows of logits [S, Vd] whose sequences sample, `ahead` of each one's first output index.

        None where the highest logit is no finite number: there is no distribution to draw from.
        """
        places = [place for place, planned in enumerate(sequences) if planned.sampling.temperature > 0.0]
        if not places:
            return {}
        rows = [sampling_row(sequences[place], ahead[place]) for place in places]
        settings = draw_settings(rows, logits.device, Stream.DRAFT)
        # Rounded before the draw: verification must see the very distribution that the draft was drawn from.
        own = logits[places].contiguous()
        chances = draw_probabilities(own, settings).to(torch.float32)
        drawn = draw_from(chances.to(torch.float64), settings.points)
        picked: list[int] = torch.where(own.amax(dim=-1).isfinite(), drawn, _NOT_DRAWN).tolist()
        table = self._target_ids
        return {
            place: None
            if mine == _NOT_DRAWN
            else Proposal(
                token_id=mine if table is None else table[mine],
                chances=chances[row].clone(),  # a view would keep the whole batch's for as long as one sequence's
                target_ids=self._target_table,
            )
            for row, (place, mine) in enumerate(zip(places, picked, strict=True))
        }

    def _run(self, states: torch.Tensor, rows: DraftRows, tables: torch.Tensor) -> torch.Tensor:
        """One pass of the draft model."""
        return self.model.forward(
            states,
            Batch(
                token_ids=self._tensor(rows.token_ids),
                positions=self._tensor(rows.positions),
                slots=self._tensor(rows.slots),
                row_starts=self._tensor(np.array([0, *rows.ends], dtype=np.int32)),
                context_lens=self._tensor(rows.context_lens),
                block_tables=tables,
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

    def _best(self, logits: torch.Tensor) -> list[int]:
        """The likeliest token of each row."""
        best: list[int] = logits.argmax(dim=-1).tolist()
        return best if self._target_ids is None else [self._target_ids[place] for place in best]

    def _tensor(self, array: IntArray | npt.NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)
