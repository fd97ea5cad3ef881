"""What the next step will hold, told before the tokens of the present one are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from scheduler.drafting import DraftPlanner, Foreseen
from scheduler.limits import SchedulerConfig
from scheduler.live_requests import LiveRequests
from scheduler.plan import UNKNOWN_TOKEN, SequencePlan, StepPlan, num_draft_passes
from scheduler.request import DraftMethod
from scheduler.sequence import Sequence


def is_steady(plan: StepPlan, live: LiveRequests) -> bool:
    """Whether nobody waits, every running sequence decodes, and no drafts are looked up, whose number nobody knows."""
    return (
        not live.waiting
        and len(plan.sequences) >= len(live.running)
        and not any(
            len(planned.token_ids) != planned.num_logit_rows
            or planned.prompt_logprob_targets
            or planned.draft_method is DraftMethod.NGRAM
            for planned in plan.sequences
        )
    )


def foreseen_step(
    plan: StepPlan, in_flight: Mapping[int, Sequence], drafting: DraftPlanner, config: SchedulerConfig
) -> StepPlan | None:
    """The step behind a steady one; None unless all of it is certain.

    They start as if no draft of the plan were accepted; whoever runs them knows how many were. A sequence that is sure
    to end with the plan has none, one that may end has some in vain. `drafting` plans the next step accordingly.
    """
    coming: list[SequencePlan] = []
    expected: dict[int, Foreseen] = {}
    for planned in plan.sequences:
        sequence = in_flight[planned.sequence_id]
        if sequence.finish_reason is not None or _ends(sequence, config.context_limit):
            continue
        foreseen = drafting.foresee(sequence, planned, num_others=len(plan.sequences))
        if foreseen is None:
            return None
        if sequence.drafting is not None:
            expected[planned.sequence_id] = foreseen
        coming.append(
            replace(
                planned,
                token_ids=(UNKNOWN_TOKEN,) * (1 + foreseen.num_drafts),
                num_logit_rows=1 + foreseen.num_drafts,
                start=planned.start + 1,
                output_index=planned.output_index + 1,
                num_proposals=foreseen.num_proposals,
            )
        )
    num_rows = sum(len(planned.token_ids) for planned in coming)
    if num_rows > config.max_rows_per_step:
        return None
    drafting.expect(expected)
    return StepPlan(
        step_id=plan.step_id + 1,
        sequences=tuple(coming),
        num_rows=num_rows,
        num_draft_passes=num_draft_passes(coming),
    )


def _ends(sequence: Sequence, context_limit: int) -> bool:
    """Whether one token more is its last."""
    return sequence.num_output + 1 >= sequence.sampling.max_tokens or len(sequence.tokens) + 1 >= context_limit
