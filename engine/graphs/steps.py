"""One bucket's steps: its buffers, what was recorded on them, and single steps through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.graphs.buckets import Bucket
from engine.graphs.device import Mark, StepDevice
from engine.graphs.fill import HostInputs
from engine.graphs.inputs import StepInputs, StepOutputs, num_bytes, parts_of
from engine.graphs.points import Points
from engine.graphs.region import Chain, Drafting, StepRegion, Verified
from kernels.step.values import StepBefore
from model.bailing import BailingModel
from model.kv_cache import KVCache
from scheduler.plan import SequencePlan, StepTimes

_IN_FLIGHT = 2  # steps at a time: the present one, and what is certain of the next


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWorld:
    """What all buckets of a rank share."""

    model: BailingModel
    kv: KVCache  # its last block is nobody's: padding writes there
    drafting: Drafting | None
    device: torch.device
    is_alone: bool  # no other rank steps with this one
    table_width: int  # blocks that the longest context takes
    max_drafts: int

    @property
    def scratch_slot(self) -> int:
        """Where padding writes."""
        return (self.kv.num_blocks - 1) * self.kv.block_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A step that the device was asked for."""

    sequences: tuple[SequencePlan, ...]
    results: StepOutputs  # on the host, once `end` has been waited for
    begin: Mark
    verified: Mark
    extended: Mark
    end: Mark

    def wait(self) -> StepTimes:
        """Until `results` hold what came of it; returns what its parts took of the device's time."""
        self.end.wait()
        return StepTimes(
            forward_s=self.verified.seconds_since(self.begin),
            draft_s=self.end.seconds_since(self.verified),
            extend_s=self.extended.seconds_since(self.verified),
        )


class _HostSide:
    """What the host keeps of one step in flight: nobody writes there before the device is through with it."""

    def __init__(self, bucket: Bucket, world: StepWorld, steps: StepDevice, before: StepBefore) -> None:
        layout = StepInputs.layout(bucket, world.table_width, world.max_drafts)
        out_layout = StepOutputs.layout(bucket, world.max_drafts)
        self.input_bytes, self.output_bytes = (steps.host_memory(num_bytes(part)) for part in (layout, out_layout))
        self.inputs = HostInputs(bucket, StepInputs(**parts_of(self.input_bytes, layout)), before, world.kv.block_size)
        self.outputs = StepOutputs(**parts_of(self.output_bytes, out_layout))
        self.end = steps.mark()


class BucketSteps:
    """Steps of one shape. After `launch` the host does whatever else it has to, also launch another one."""

    def __init__(self, bucket: Bucket, world: StepWorld, steps: StepDevice, before: StepBefore) -> None:
        self._world = world
        self._steps = steps
        self._sides = [_HostSide(bucket, world, steps, before) for _ in range(_IN_FLIGHT)]
        first = self._sides[0]
        self._in, self._out = (
            torch.zeros_like(part, device=world.device) for part in (first.input_bytes, first.output_bytes)
        )
        self._region = StepRegion(
            model=world.model,
            kv=world.kv,
            drafting=world.drafting,
            scratch_slot=world.scratch_slot,
            bucket=bucket,
            inputs=StepInputs(**parts_of(self._in, StepInputs.layout(bucket, world.table_width, world.max_drafts))),
            outputs=StepOutputs(**parts_of(self._out, StepOutputs.layout(bucket, world.max_drafts))),
            before=before,
        )
        self._verified: Verified | None = None
        self._chain: Chain | None = None
        self._in.copy_(first.input_bytes)
        self._verify, self._extend, self._draft = self._record()

    def launch(
        self, sequences: Sequence[SequencePlan], num_draft_passes: int, points: Points, places: Mapping[int, int]
    ) -> Launched:
        """Ask the device for a step behind all that it was asked for; the host does not wait for it.

        `places`: see `HostInputs.fill`.
        """
        side = self._sides[0]
        self._sides.append(self._sides.pop(0))
        side.end.wait()
        side.inputs.fill(sequences, points, places)
        begin = self._steps.mark()
        self._steps.copy(self._in, side.input_bytes)
        self._verify()
        verified = extended = self._steps.mark()
        if num_draft_passes and self._world.drafting is not None:
            self._extend()
            extended = self._steps.mark()
            for _ in range(num_draft_passes - 1):
                self._draft()
        self._steps.copy(side.output_bytes, self._out)
        side.end = self._steps.mark()
        return Launched(
            sequences=tuple(sequences),
            results=side.outputs,
            begin=begin,
            verified=verified,
            extended=extended,
            end=side.end,
        )

    def _record(self) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        """Run every part once on padding, which compiles its kernels, then record it."""
        region = self._region

        def verify() -> None:
            self._verified = region.verify()

        def extend() -> None:
            self._chain = region.extend(self._last_verified)

        def draft() -> None:
            region.draft(self._last_chain)

        parts = [verify]
        if self._world.drafting is not None:
            parts += [extend, draft] if self._world.max_drafts > 1 else [extend]
        for part in parts:
            part()
        recorded = [self._steps.record(part) for part in parts]
        verify_again, extend_again, draft_again = recorded + [_nothing] * (3 - len(recorded))
        return verify_again, extend_again, draft_again

    @property
    def _last_verified(self) -> Verified:
        assert self._verified is not None, "nothing was verified yet"
        return self._verified

    @property
    def _last_chain(self) -> Chain:
        assert self._chain is not None, "nothing was drafted yet"
        return self._chain


def _nothing() -> None:
    """Where nothing drafts."""
