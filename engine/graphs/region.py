"""What is recorded: forward pass, choice of tokens, acceptance of drafts, and the next drafts, all on the device.

Nothing here waits for the device, reads a value from it or has a shape that depends on one: a CUDA graph repeats it
blindly. `tests/engine/test_graph_region.py` runs it where every such operation is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from engine.drafters.draft_model import DraftModel
from engine.graphs.buckets import Bucket
from engine.graphs.inputs import StepInputs, StepOutputs
from kernels.paged_attention import KVLayer
from kernels.sample import choose_tokens
from kernels.step import accept_drafts, draft_rows, first_drafts, further_drafts, rows_behind
from kernels.step.values import Drafted, StepBefore
from model.bailing import BailingModel
from model.batch import Batch, ModelOutput
from model.kv_cache import KVCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """A draft model with its KV layer."""

    model: DraftModel
    kv: KVLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What the first part of a step hands to the drafting."""

    batch: Batch
    output: ModelOutput
    token_ids: torch.Tensor  # [T] int64, chosen for each row
    draft_slots: torch.Tensor  # [T] int32, as in `StepRows`
    last: torch.Tensor  # [B] int64, the row of each sequence behind its accepted drafts


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Where the drafts of each sequence stand: what the next pass of the draft model starts from."""

    states: torch.Tensor  # [B, h]
    drafted: Drafted


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRegion:
    """The work of the steps of one bucket, on its buffers."""

    model: BailingModel
    kv: KVCache
    drafting: Drafting | None
    scratch_slot: int  # where rows write that are nobody's
    bucket: Bucket
    inputs: StepInputs
    outputs: StepOutputs
    before: StepBefore

    def verify(self) -> Verified:
        """Run the rows, choose a token for each, and see which drafts were chosen, too."""
        inputs = self.inputs
        rows = rows_behind(self.before, inputs.planned, self.kv.block_size, self.scratch_slot)
        batch = Batch(
            token_ids=rows.token_ids,
            positions=rows.positions,
            slots=rows.slots,
            row_starts=inputs.row_starts,
            context_lens=rows.context_lens,
            block_tables=inputs.block_tables,
            logit_rows=inputs.token_ids[:0],
            is_live=rows.is_live,
            max_rows=self.bucket.rows_each,
        )
        captured = () if self.drafting is None else self.drafting.model.capture_layers
        hidden, states = self.model.hidden_states(batch, self.kv, captured)
        logits = self.model.lm_head(hidden)  # of every row, so that none need be gathered
        token_ids, best = choose_tokens(logits, inputs.settings(rows.points))
        last = accept_drafts(rows.token_ids, token_ids, best, inputs.row_starts, self.before, self.outputs.outcome)
        # Logits would keep the largest piece of a graph's memory from the next one.
        output = ModelOutput(logits=logits[:0].clone(), hidden=hidden, captured=states)
        return Verified(batch=batch, output=output, token_ids=token_ids, draft_slots=rows.draft_slots, last=last)

    def extend(self, verified: Verified) -> Chain:
        """Let the draft model follow every row, rejected drafts too, and propose the first draft of each sequence.

        The token behind a row that stays is the one chosen for it. What the others write lies behind all that stays,
        where no row looks before a later one has written it anew.
        """
        model, last = self._drafting.model, verified.last
        batch = replace(verified.batch, token_ids=verified.token_ids, slots=verified.draft_slots)
        states = model.forward(model.first_states(verified.output), batch, self._drafting.kv).index_select(0, last)
        where = (verified.batch.positions, last, self.before, self.outputs.drafts)
        return Chain(states=states, drafted=first_drafts(model.logits(states), model.target_ids, *where))

    def draft(self, chain: Chain) -> None:
        """One draft more for each sequence that wants one; the others' rows write to the scratch slot."""
        model, kv, inputs = self._drafting.model, self._drafting.kv, self.inputs
        block_tables = inputs.block_tables
        rows = draft_rows(chain.drafted, inputs.num_proposals, block_tables, kv.block_size, self.scratch_slot)
        batch = Batch(
            token_ids=chain.drafted.token_ids,
            positions=rows.positions,
            slots=rows.slots,
            row_starts=rows.row_starts,
            context_lens=rows.context_lens,
            block_tables=block_tables,
            logit_rows=inputs.token_ids[:0],
            is_live=rows.is_live,
            max_rows=1,
        )
        states = model.forward(chain.states, batch, kv)  # which may write into what it is given
        further_drafts(model.logits(states), model.target_ids, chain.drafted, self.before, self.outputs.drafts)
        chain.states.copy_(states)

    @property
    def _drafting(self) -> Drafting:
        assert self.drafting is not None, "nothing drafts here"
        return self.drafting
