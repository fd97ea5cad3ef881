"""What a rank will launch, without a device: its own steps, on tensors without memory.

The recorded steps are those that the rank records. Of the others, whose shapes requests decide, those are run whose
numbers of rows and of sequences lie around powers of two, which is where choices of kernels and tiles change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch

import kernels.native
from engine.batch import build_batch
from engine.config import EngineConfig
from engine.drafters.draft_model import DraftModel
from engine.dtypes import activation_dtype, kv_dtype
from engine.graphs.buckets import Buckets
from engine.graphs.build import step_world
from engine.graphs.device import HostSteps
from engine.graphs.region import Drafting
from engine.graphs.sizes import longest_context, runs_graphs
from engine.graphs.steps import BucketSteps
from engine.precompile.dispatch import dispatcher_of
from engine.precompile.weights import META, Shapes, draft_model_of
from kernels.paged_attention import allocate_kv_layer
from kernels.sample import draw_tokens
from kernels.step.values import StepBefore
from model.bailing import BailingModel
from model.checkpoint import Target, build_model
from model.config import ModelConfig
from model.kv_cache import KVCache
from model.sampling import SamplingRow, draw_settings
from router.placement import Placement
from scheduler.plan import SequencePlan, StepPlan
from scheduler.request import SamplingParams

_MOST_ROWS = (1, 2, 3, 5, 9)  # of a sequence of several: attention has kernels for up to 1, 2, 4, 8, and for more
_DRAWN = SamplingParams(max_tokens=1, temperature=1.0)


def launch_everything(config: EngineConfig) -> None:
    """Launch each kernel in each way that a rank of this configuration may. `kernels.ahead.compile_for` was called."""
    kernels.native.use("triton", batch_invariant=config.batch_invariant)
    with torch.inference_mode():
        world = _World.of(config)
        if runs_graphs(config, "cuda"):
            world.run_buckets()
        for plan in step_plans(config, world.longest):
            world.run(plan)


def around_powers(most: int) -> list[int]:
    """Powers of two and what follows on each, up to `most`, which is the last."""
    powers = [2**power for power in range(most.bit_length())]
    return sorted({size for power in powers for size in (power, power + 1) if size < most} | {most})


def step_plans(
    config: EngineConfig, longest: int, sizes: Callable[[int], Iterable[int]] = around_powers
) -> Iterator[StepPlan]:
    """Chunks of a prompt, and sequences of which one has more rows than the others; all their rows have logits."""
    for num_rows in sizes(min(config.max_rows_per_step, longest)):
        yield _plan([num_rows], [1], config.block_size)
    for num_sequences in sizes(min(config.max_sequences, config.max_rows_per_step)):
        for most in _MOST_ROWS:
            rows = [most, *[1] * (num_sequences - 1)]
            if most <= longest and sum(rows) <= config.max_rows_per_step:
                yield _plan(rows, rows, config.block_size)


def _plan(rows: list[int], logit_rows: list[int], block_size: int) -> StepPlan:
    sequences = tuple(
        SequencePlan(
            sequence_id=number,
            token_ids=(0,) * num_rows,
            start=0,
            block_table=range(-(-num_rows // block_size) + 1),  # drafts may follow
            num_logit_rows=num_logits,
            sampling=_DRAWN,
            sequence_index=0,
            output_index=0,
        )
        for number, (num_rows, num_logits) in enumerate(zip(rows, logit_rows, strict=True))
    )
    return StepPlan(step_id=0, sequences=sequences, num_rows=sum(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class _World:
    """A rank's model, cache and draft model without memory."""

    config: EngineConfig
    model: BailingModel
    kv: KVCache
    drafting: Drafting | None
    longest: int  # positions of a sequence

    @classmethod
    def of(cls, config: EngineConfig) -> _World:
        model_config = ModelConfig.from_dir(config.model_dir)
        dtype, cache_dtype = activation_dtype(config), kv_dtype(config)
        placement = Placement.even(model_config.num_experts, config.group_size)
        target = Target(dtype=dtype, device=META, placement=placement, rank=config.rank)
        model = build_model(
            Shapes(config.model_dir, model_config, dtype),
            model_config,
            target=target,
            dispatcher=dispatcher_of(placement, config.rank, META),
        )
        longest = longest_context(config, model_config)
        # How many blocks there are decides nothing; these are a sequence's, and one for padding.
        num_blocks = -(-longest // config.block_size) + 1
        kv = KVCache(model_config, num_blocks, config.block_size, cache_dtype, META)
        drafter = draft_model_of(config, model)
        drafting = None
        if drafter is not None:
            heads, size = drafter.num_kv_heads, drafter.head_dim
            layer = allocate_kv_layer(num_blocks, config.block_size, heads, size, cache_dtype, META)
            drafting = Drafting(model=drafter, kv=layer)
        return cls(config=config, model=model, kv=kv, drafting=drafting, longest=longest)

    def run_buckets(self) -> None:
        """What is recorded when a rank starts."""
        buckets, world = Buckets.of(self.config), step_world(self.config, self.model, self.kv, self.drafting, META)
        before = StepBefore.of(buckets.largest.num_sequences, world.max_drafts, META)
        for bucket in buckets.all:
            BucketSteps(bucket, world, HostSteps(), before)

    def run(self, plan: StepPlan) -> None:
        """A step that is not recorded, as `ModelRunner` has it, without what reads values."""
        drafter: DraftModel | None = None if self.drafting is None else self.drafting.model
        batch = build_batch(plan, self.config.block_size, META)
        output = self.model.forward(batch, self.kv, () if drafter is None else drafter.capture_layers)
        draw_tokens(output.logits, draw_settings([SamplingRow(temperature=1.0)] * len(output.logits), META))
        if self.drafting is None:
            return
        states = self.drafting.model.first_states(output)
        states = self.drafting.model.forward(states, replace(batch, logit_rows=batch.logit_rows[:0]), self.drafting.kv)
        self.drafting.model.logits(states.index_select(0, batch.row_starts[1:].long()))
