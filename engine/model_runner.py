"""The runner that computes: batch, forward pass, sampling and verification, drafts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import torch

from engine.batch import build_batch
from engine.config import SpeculationConfig
from engine.drafters.chain import ChainDrafter
from engine.drafters.ngram import with_look_ups
from engine.results import results_from_logits
from engine.runner import Foresight, nothing_foreseen
from model.bailing import BailingModel
from model.batch import Batch, ModelOutput
from model.kv_cache import KVCache
from scheduler.plan import SequenceResult, StepPlan, StepResult, StepShape, StepTimes


class ModelRunner:
    """One rank's model and KV cache behind the runner's seam, and the draft model, if there is one."""

    def __init__(
        self,
        model: BailingModel,
        kv: KVCache,
        device: torch.device,
        drafter: ChainDrafter | None = None,
        speculation: SpeculationConfig | None = None,
    ) -> None:
        self._model = model
        self._kv = kv
        self._device = device
        self._drafter = drafter
        self._speculation = speculation or SpeculationConfig()

    def shape(self, plan: StepPlan) -> StepShape | None:
        """See `engine.runner.Runner`: every step runs as it is."""
        return None

    def under_way(self, plan: StepPlan) -> StepPlan | None:
        """See `engine.runner.Runner`."""
        return None

    @torch.inference_mode()
    def run(self, plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        """See `engine.runner.Runner`."""
        begin_s = time.perf_counter()
        batch = build_batch(plan, self._kv.block_size, self._device)
        is_drafting = self._drafter is not None and plan.num_draft_passes > 0
        captured = self._drafter.capture_layers if self._drafter is not None and is_drafting else ()
        output = self._model.forward(batch, self._kv, captured)
        forward_s = time.perf_counter()
        memory = None if self._drafter is None else self._drafter.memory
        results = results_from_logits(plan.sequences, output.logits, memory)
        sample_s = time.perf_counter()
        if is_drafting or any(planned.ngrams is not None for planned in plan.sequences):
            results = self._with_drafts(plan, batch, output, results)
        draft_s = time.perf_counter()
        times = StepTimes(
            forward_s=forward_s - begin_s,
            sample_s=sample_s - forward_s,
            draft_s=draft_s - sample_s,
            extend_s=self._drafter.extend_s if self._drafter is not None and is_drafting else 0.0,
        )
        return StepResult(step_id=plan.step_id, sequences=results, times=times)

    def _with_drafts(
        self, plan: StepPlan, batch: Batch, output: ModelOutput, results: Sequence[SequenceResult]
    ) -> tuple[SequenceResult, ...]:
        """The results with what is proposed for the next step."""
        if self._drafter is not None and plan.num_draft_passes:
            kept = [() if result.error else result.token_ids for result in results]
            drafts = self._drafter.draft(plan, batch, output, kept)
            results = [
                dataclasses.replace(result, draft_ids=proposed) if proposed else result
                for result, proposed in zip(results, drafts, strict=True)
            ]
        return with_look_ups(plan.sequences, results, self._speculation)
