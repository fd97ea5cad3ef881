"""The steps that nobody waits for: they put everything in place, and tell what steps cost where that decides something.

They write to block 0, which no sequence owns yet. Every rank of a group runs the same ones, hence the same collectives.
"""

from __future__ import annotations

from dataclasses import replace

from engine.config import EngineConfig
from engine.runner import Runner
from scheduler.draft_costs import DraftedStep
from scheduler.plan import SequencePlan, StepPlan, StepResult
from scheduler.request import DraftMethod, SamplingParams

_MOST_ROWS = 512  # of a measured step: more are a prompt's, and tell nothing about drafting
_NUM_TIMES = 3  # that each is run; the quickest counts, since all else on the machine only ever slows a step
_PRIME = 7919  # tokens that far apart choose experts as real text does, not all the same ones


def warm_up(runner: Runner, config: EngineConfig, vocab_size: int) -> tuple[DraftedStep, ...]:
    """A chunk and a decode; then, where the length of drafts is chosen by cost, decodes of 1, 2, 4 .. sequences.

    Returns what those cost.
    """
    method = config.speculation.loaded
    chunk = _sequence(config, method, token_ids=(0,) * min(config.block_size, 8), num_proposals=int(method.has_kv))
    _run(runner, -2, (chunk,))
    decode = (_sequence(config, method, token_ids=(0,), num_proposals=int(method.has_kv)),)
    _run(runner, -1, decode)
    if not method.has_kv or not config.speculation.adaptive or not config.speculation.max_drafts:
        return ()
    most = min(config.max_sequences * (1 + config.speculation.max_drafts), config.max_rows_per_step, _MOST_ROWS)
    sizes = [2**power for power in range(most.bit_length())]
    return tuple(_measured(runner, config, vocab_size, num_sequences) for num_sequences in sizes)


def _measured(runner: Runner, config: EngineConfig, vocab_size: int, num_sequences: int) -> DraftedStep:
    """The cost of a decode of so many sequences with two drafts each; more than fit are rows of a verification."""
    method = config.speculation.loaded
    num_drafts = min(2, config.speculation.max_drafts) if num_sequences <= config.max_sequences else 0
    sequences = tuple(
        _sequence(config, method, token_ids=(number * _PRIME % vocab_size,), num_proposals=num_drafts)
        for number in range(num_sequences)
    )
    times = [_run(runner, -3, sequences).times for _ in range(_NUM_TIMES)]
    best = min(times, key=lambda time: time.forward_s + time.sample_s + time.draft_s)
    return DraftedStep(
        num_rows=num_sequences,
        num_followed=num_sequences,
        num_passes=max(num_drafts - 1, 0),
        num_further=num_sequences * max(num_drafts - 1, 0),
        model_s=best.forward_s + best.sample_s,
        extend_s=best.extend_s,
        draft_s=best.draft_s - best.extend_s,
    )


def _run(runner: Runner, step_id: int, sequences: tuple[SequencePlan, ...]) -> StepResult:
    """A step as the engine would run it; its shape needs no agreement, since all ranks run the same."""
    plan = StepPlan(
        step_id=step_id,
        sequences=sequences,
        num_rows=sum(len(sequence.token_ids) for sequence in sequences),
        num_draft_passes=max(max(sequence.num_proposals, int(sequence.draft_method.has_kv)) for sequence in sequences),
    )
    return runner.run(replace(plan, shape=runner.shape(plan)))


def _sequence(
    config: EngineConfig, method: DraftMethod, *, token_ids: tuple[int, ...], num_proposals: int
) -> SequencePlan:
    last = len(token_ids) + max(num_proposals - 1, 0)  # the first draft comes from the rows themselves
    return SequencePlan(
        sequence_id=-1,
        token_ids=token_ids,
        start=0,
        block_table=(0,) * -(-last // config.block_size),
        num_logit_rows=1,
        sampling=SamplingParams(max_tokens=1, top_k=2),
        sequence_index=0,
        output_index=0,
        draft_method=method,
        num_proposals=num_proposals,
    )
