"""Whole steps of the engine's runner: from a plan to tokens on the host, as they are, recorded, and one ahead."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.gpu.session import Figures, Session
from benchmarks.gpu.steps import BLOCK_SIZE, blocks_of
from engine.config import SpeculationConfig
from engine.graphs.buckets import Buckets
from engine.graphs.device import steps_on
from engine.graphs.region import Drafting
from engine.graphs.runner import GraphRunner
from engine.graphs.steps import StepWorld
from engine.model_runner import ModelRunner
from kernels.paged_attention import allocate_kv_layer
from model.bailing import BailingModel
from model.eagle3 import Eagle3Head
from model.kv_cache import KVCache
from router.collectives import CollectiveCount
from scheduler.plan import UNKNOWN_TOKEN, SequencePlan, StepPlan, num_draft_passes
from scheduler.request import DraftMethod, SamplingParams

# Random weights score all tokens about alike; cooled so far, few are likely, as with a trained model.
_SAMPLING = SamplingParams(max_tokens=1 << 20, temperature=0.05, top_p=0.95, ignore_eos=True)


class WholeSteps:
    """One model and its draft head behind both runners. The last block of `kv` is nobody's."""

    def __init__(
        self, session: Session, model: BailingModel, head: Eagle3Head, kv: KVCache, buckets: Buckets, most_blocks: int
    ) -> None:
        self._eager = ModelRunner(model, kv, session.device)
        kv_shape = (kv.num_blocks, BLOCK_SIZE, head.num_kv_heads, head.head_dim)
        layer = allocate_kv_layer(*kv_shape, torch.bfloat16, session.device)
        world = StepWorld(
            model=model,
            kv=kv,
            drafting=Drafting(model=head, kv=layer),
            device=session.device,
            is_alone=True,
            table_width=most_blocks,
            max_drafts=buckets.rows[-1] - 1,
        )
        steps = steps_on(session.device, CollectiveCount())
        start_s = time.perf_counter()
        self._recorded = GraphRunner(self._eager, world, buckets, steps, SpeculationConfig())
        self.recording_s = time.perf_counter() - start_s
        self._vocab_size = model.config.vocab_size
        self._draw = random.Random(session.seed)

    def measure(self, num_sequences: int, context: int, rows: int, repeats: int) -> Figures:
        """Wall-clock milliseconds a step, the host's work included; the best of some, of rounds the mean.

        Rounds are steps one behind the other, with the drafts of the one before: each launched when the host has the
        one before it ("rounds"), or earlier ("ahead").
        """
        width = blocks_of(most_positions(context, rows, repeats))
        tables = [list(range(place * width, (place + 1) * width)) for place in range(num_sequences)]
        tokens = [tuple(self._draw.randrange(self._vocab_size) for _ in range(rows)) for _ in range(num_sequences)]
        plan = _plan(tables, tokens, [context] * num_sequences)
        shaped = self._shaped(plan)
        eager, recorded = self._eager.run(plan), self._recorded.run(shaped)
        found: Figures = {
            "ok": [one.token_ids for one in eager.sequences] == [one.token_ids for one in recorded.sequences],
            "rows_of_each": rows,
            "eager": {"ms": min(_ms(lambda: self._eager.run(plan)) for _ in range(repeats))},
            "graph": {"ms": min(_ms(lambda: self._recorded.run(shaped)) for _ in range(repeats))},
        }
        for name, is_ahead in (("rounds", False), ("ahead", True)):
            run = partial(self._rounds, tables, tokens, context, repeats, is_ahead=is_ahead)
            num_before = self._recorded.num_ahead
            found[name] = {"ms": _ms(run) / (repeats + 1)}
            found["ok"] = found["ok"] and self._recorded.num_ahead - num_before == (repeats if is_ahead else 0)
        return found

    def _rounds(
        self, tables: list[list[int]], tokens: list[tuple[int, ...]], context: int, repeats: int, *, is_ahead: bool
    ) -> None:
        """Each round has the token behind what the one before accepted, and as many drafts as it had itself."""
        unknown = [(UNKNOWN_TOKEN,) * len(tokens[0])] * len(tables)
        starts = [context] * len(tables)
        for number in range(repeats + 1):
            plan = _plan(tables, tokens, starts, num_proposals=len(tokens[0]) - 1)
            coming = None
            if is_ahead and number < repeats:
                behind = [start + 1 for start in starts]
                coming = self._shaped(_plan(tables, unknown, behind, plan.sequences[0].num_proposals))
            results = self._recorded.run(self._shaped(plan), partial(_given, coming)).sequences
            starts = [start + len(one.token_ids) for start, one in zip(starts, results, strict=True)]
            tokens = [(one.token_ids[-1], *one.draft_ids) for one in results]

    def _shaped(self, plan: StepPlan) -> StepPlan:
        return dataclasses.replace(plan, shape=self._recorded.shape(plan))


def _given(coming: StepPlan | None) -> StepPlan | None:
    """What was foreseen."""
    return coming


def most_positions(context: int, rows: int, repeats: int) -> int:
    """That a sequence can reach in rounds of so many rows, all of whose drafts may be accepted."""
    return context + (repeats + 2) * rows + rows


def _plan(
    tables: list[list[int]], tokens: Sequence[tuple[int, ...]], starts: Sequence[int], num_proposals: int = 0
) -> StepPlan:
    """Rows of each sequence, all of them sampled, and drafts for the next ones."""
    sequences = tuple(
        SequencePlan(
            sequence_id=place,
            token_ids=mine,
            start=start,
            block_table=table,
            num_logit_rows=len(mine),
            sampling=dataclasses.replace(_SAMPLING, seed=place),
            sequence_index=0,
            output_index=start,
            draft_method=DraftMethod.EAGLE3 if num_proposals else DraftMethod.NONE,
            num_proposals=num_proposals,
        )
        for place, (table, mine, start) in enumerate(zip(tables, tokens, starts, strict=True))
    )
    return StepPlan(
        step_id=0,
        sequences=sequences,
        num_rows=len(tables) * len(tokens[0]),
        num_draft_passes=num_draft_passes(sequences),
    )


def _ms(run: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    run()
    return (time.perf_counter() - start_s) * 1e3
