"""The runner that puts decodes and verifies into fixed shapes; every other step runs as it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from engine.config import SpeculationConfig
from engine.drafters.ngram import with_look_ups
from engine.graphs.ahead import Ahead
from engine.graphs.buckets import Bucket, Buckets
from engine.graphs.device import StepDevice
from engine.graphs.inputs import StepOutputs
from engine.graphs.points import Points
from engine.graphs.shape import shape_of
from engine.graphs.steps import BucketSteps, Launched, StepWorld
from engine.runner import Foresight, Runner, nothing_foreseen
from kernels.step.values import StepBefore
from model.sampling import no_finite_logits
from scheduler.plan import SequencePlan, SequenceResult, StepPlan, StepResult, StepShape


class GraphRunner:
    """Records all buckets when it is made, which every rank of a group does at the same time.

    `eager` runs what no bucket holds, and a step without rows where no other rank takes part in it. Where the next step
    is certain, on all ranks of a group, the device goes on with it while the host takes in the present one.
    """

    def __init__(
        self, eager: Runner, world: StepWorld, buckets: Buckets, steps: StepDevice, speculation: SpeculationConfig
    ) -> None:
        self.num_ahead = 0  # steps that were on their way before they were planned
        self._eager = eager
        self._is_alone = world.is_alone
        self._buckets = buckets
        self._speculation = speculation
        self._block_size = world.kv.block_size
        self._points = Points(world.max_drafts)
        self._ahead: Ahead | None = None
        with torch.inference_mode():
            before = StepBefore.of(buckets.largest.num_sequences, world.max_drafts, world.device)
            self._steps = {bucket: BucketSteps(bucket, world, steps, before) for bucket in buckets.all}

    def shape(self, plan: StepPlan) -> StepShape | None:
        """See `engine.runner.Runner`."""
        if self._is_alone and not plan.sequences:
            return None
        shape = shape_of(plan, draws_drafts=self._speculation.draws_drafts)
        # What fits on every rank fits together: there is a bucket for each number of sequences with each of rows.
        return None if shape is None or self._buckets.smallest(shape) is None else shape

    def bucket(self, plan: StepPlan) -> Bucket | None:
        """The bucket that a step runs in, if any."""
        return None if plan.shape is None else self._buckets.smallest(plan.shape)

    def under_way(self, plan: StepPlan) -> StepPlan | None:
        """See `engine.runner.Runner`."""
        return None if self._is_alone or self._ahead is None else self._ahead.part_of(plan)

    @torch.inference_mode()
    def run(self, plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        """See `engine.runner.Runner`."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            rest = () if plan.is_launched else ahead.rest_of(plan)
            if plan.is_launched or len(rest) < len(plan.sequences):
                return self._with_the_rest(plan, ahead, rest, foresee)
        bucket = self.bucket(plan)
        if bucket is None:
            return self._eager.run(plan)
        launched = self._steps[bucket].launch(plan.sequences, plan.num_draft_passes, self._points, {})
        self._go_on(plan, launched, foresee)
        times = launched.wait()
        results = results_of(plan.sequences, launched.results)
        if self._ahead is not None:
            self._ahead = self._ahead.knowing(results)
        results = with_look_ups(plan.sequences, results, self._speculation)
        return StepResult(step_id=plan.step_id, sequences=results, times=times)

    def _with_the_rest(
        self, plan: StepPlan, ahead: Ahead, rest: tuple[SequencePlan, ...], foresee: Foresight
    ) -> StepResult:
        """A step of which some rows are on their way already; the `rest`, which was not foreseen, runs behind them."""
        self.num_ahead += 1
        if not rest:
            self._go_on(plan, ahead.launched, foresee)
        times = ahead.launched.wait()
        found = results_of(ahead.launched.sequences, ahead.launched.results)
        of_sequence = _by_id(ahead.launched.sequences, found)
        if rest:
            late = dataclasses.replace(
                plan, sequences=rest, num_rows=sum(len(planned.token_ids) for planned in rest), shape=None
            )
            done = self._eager.run(late)
            of_sequence |= _by_id(rest, done.sequences)
            times += done.times
        results = tuple(of_sequence[planned.sequence_id] for planned in plan.sequences)
        if self._ahead is not None:
            self._ahead = self._ahead.knowing(results)
        is_whole = not rest and len(plan.sequences) == len(ahead.launched.sequences)
        return StepResult(step_id=plan.step_id, sequences=results, times=times, is_whole=is_whole)

    def _go_on(self, plan: StepPlan, launched: Launched, foresee: Foresight) -> None:
        """While a step runs: launch the next one if it is certain, and prepare what comes behind."""
        coming = foresee()
        if coming is not None:
            bucket = self.bucket(coming)
            assert bucket is not None, f"no bucket holds {coming.shape}"
            places = {planned.sequence_id: place for place, planned in enumerate(launched.sequences)}
            after = self._steps[bucket].launch(coming.sequences, coming.num_draft_passes, self._points, places)
            self._ahead = Ahead.of(after, coming, plan.sequences, self._block_size)
        self._points.prepare(plan.sequences if coming is None else coming.sequences)


def results_of(sequences: Sequence[SequencePlan], outputs: StepOutputs) -> tuple[SequenceResult, ...]:
    """What each sequence got: the drafts that were accepted and the token after them, and drafts for its next step."""
    token_ids, best = outputs.token_ids.tolist(), outputs.best.tolist()
    accepted, drafts = outputs.accepted.tolist(), outputs.drafts.T.tolist()
    results, first = [], 0
    for place, planned in enumerate(sequences):
        is_sound = math.isfinite(best[first])
        results.append(
            SequenceResult(
                token_ids=tuple(token_ids[first : first + accepted[place] + 1]),
                draft_ids=tuple(drafts[place][: planned.num_proposals]) if planned.draft_method.has_kv else (),
                error="" if is_sound else no_finite_logits(best[first]),
            )
        )
        first += len(planned.token_ids)
    return tuple(results)


def _by_id(sequences: Sequence[SequencePlan], results: Sequence[SequenceResult]) -> dict[int, SequenceResult]:
    return {planned.sequence_id: result for planned, result in zip(sequences, results, strict=True)}
