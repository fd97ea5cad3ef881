"""Which steps can run in a fixed shape, from what is planned alone."""

from __future__ import annotations

from engine.sampling_rows import has_edits
from scheduler.plan import SequencePlan, StepPlan, StepShape


def shape_of(plan: StepPlan, *, draws_drafts: bool) -> StepShape | None:
    """The room that a step needs, or None where it holds something that the recorded steps do not know.

    That is: rows of a prompt, log-probabilities, penalties, bias and masked tokens; and where drafts are drawn
    (`draws_drafts`), sequences that sample. A step without sequences fits anywhere.
    """
    if not all(
        _is_plain(planned) and not (draws_drafts and planned.sampling.temperature) for planned in plan.sequences
    ):
        return None
    return StepShape(
        num_sequences=len(plan.sequences),
        most_rows=max((len(planned.token_ids) for planned in plan.sequences), default=1),
    )


def _is_plain(planned: SequencePlan) -> bool:
    """Whether every row is sampled from the model's own distribution, and nothing else is asked."""
    return (
        len(planned.token_ids) == planned.num_logit_rows
        and not planned.prompt_logprob_targets
        and planned.sampling.num_logprobs is None
        and not has_edits(planned)
    )
