"""Whole steps of the engine's runner: from a plan to tokens on the host, as they are, recorded, and one ahead."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.gpu.session import Figures, Session
from benchmarks.gpu.steps import BLOCK_SIZE, blocks_of
from engine.config import SpeculationConfig
from engine.graphs.buckets import Buckets
from engine.graphs.device import steps_on
from engine.graphs.runner import GraphRunner
from engine.graphs.steps import StepWorld
from engine.model_runner import ModelRunner
from model.bailing import BailingModel
from model.kv_cache import KVCache
from scheduler.plan import UNKNOWN_TOKEN, SequencePlan, StepPlan, StepResult
from scheduler.request import SamplingParams

_SAMPLING = SamplingParams(max_tokens=1 << 20, temperature=0.8, top_p=0.95, ignore_eos=True)


class WholeSteps:
    """One model behind both runners. The last block of `kv` is nobody's."""

    def __init__(self, session: Session, model: BailingModel, kv: KVCache, buckets: Buckets, most_blocks: int) -> None:
        self._eager = ModelRunner(model, kv, session.device)
        world = StepWorld(
            model=model,
            kv=kv,
            drafting=None,
            device=session.device,
            is_alone=True,
            table_width=most_blocks,
            max_drafts=buckets.rows[-1] - 1,
        )
        start_s = time.perf_counter()
        self._recorded = GraphRunner(self._eager, world, buckets, steps_on(session.device), SpeculationConfig())
        self.recording_s = time.perf_counter() - start_s
        self._vocab_size = model.config.vocab_size
        self._draw = random.Random(session.seed)

    def measure(self, num_sequences: int, context: int, rows: int, repeats: int) -> Figures:
        """Wall-clock milliseconds a step, the host's work included; the best of some but for the steps ahead."""
        width = blocks_of(context + rows + repeats)
        tables = [list(range(place * width, (place + 1) * width)) for place in range(num_sequences)]
        tokens = [tuple(self._draw.randrange(self._vocab_size) for _ in range(rows)) for _ in range(num_sequences)]
        plan = _plan(tables, tokens, context)
        shaped = dataclasses.replace(plan, shape=self._recorded.shape(plan))
        eager, recorded = self._eager.run(plan), self._recorded.run(shaped)
        found: Figures = {
            "ok": [one.token_ids for one in eager.sequences] == [one.token_ids for one in recorded.sequences],
            "rows_of_each": rows,
            "eager": {"ms": min(_ms(lambda: self._eager.run(plan)) for _ in range(repeats))},
            "graph": {"ms": min(_ms(lambda: self._recorded.run(shaped)) for _ in range(repeats))},
        }
        if rows == 1:
            found["ahead"] = {"ms": _ms(lambda: self._decode(tables, tokens, context, repeats)) / (repeats + 1)}
        return found

    def _decode(self, tables: list[list[int]], tokens: list[tuple[int, ...]], context: int, repeats: int) -> StepResult:
        """Decodes one behind the other, each launched before the host has the tokens of the one before it."""
        unknown = [(UNKNOWN_TOKEN,)] * len(tables)
        for position in range(context, context + repeats + 1):
            plan = _plan(tables, tokens, position)
            is_last = position == context + repeats
            coming = () if is_last else _plan(tables, unknown, position + 1).sequences
            shaped = dataclasses.replace(plan, shape=self._recorded.shape(plan))
            result = self._recorded.run(shaped, partial(tuple, coming))
            tokens = [one.token_ids[-1:] for one in result.sequences]
        return result


def _plan(tables: list[list[int]], tokens: Sequence[tuple[int, ...]], start: int) -> StepPlan:
    """Rows of each sequence from `start` on, all of them sampled."""
    assert len(tables[0]) * BLOCK_SIZE >= start + len(tokens[0]), f"{len(tables[0])} blocks for position {start}"
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
        )
        for place, (table, mine) in enumerate(zip(tables, tokens, strict=True))
    )
    return StepPlan(step_id=0, sequences=sequences, num_rows=len(tables) * len(tokens[0]))


def _ms(run: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    run()
    return (time.perf_counter() - start_s) * 1e3
