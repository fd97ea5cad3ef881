"""The steps that nobody waits for: they put everything in place, and tell what steps cost where that decides something.

They write to blocks that no sequence owns yet. Every rank of a group runs as many, with as many collectives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.config import EngineConfig
from engine.runner import Runner
from scheduler.draft_costs import DraftedStep
from scheduler.plan import SequencePlan, StepPlan, StepResult
from scheduler.request import SamplingParams

_MOST_ROWS = 512  # of a measured step: more are a prompt's, and tell nothing about drafting
_NUM_TIMES = 3  # that each is run; the quickest counts, since all else on the machine only ever slows a step
_NUM_TEXTS, _TEXT_TOKENS = 8, 64  # that the model writes first
_FIRST_ROW = 16  # of a text, that is measured: a context is behind it
_ROWS_EACH = 4  # of a sequence in a step of many rows, as in a verification
_NUM_PROPOSALS = 2
_LIKELIEST = SamplingParams(max_tokens=1, temperature=0.0)
_PRIME = 7919  # between the first tokens of texts


def warm_up(
    runner: Runner, config: EngineConfig, *, vocab_size: int, num_blocks: int, context_limit: int
) -> tuple[DraftedStep, ...]:
    """A chunk and a decode; then, where the length of drafts is chosen by cost, steps of 1, 2, 4 .. rows.

    Returns what those cost.
    """
    method = config.speculation.loaded
    start = _WarmUp(runner=runner, config=config, num_blocks=num_blocks)
    num_proposals = int(method.has_kv)
    chunk = start.sequence(0, token_ids=(0,) * min(config.block_size, 8), start=0, num_proposals=num_proposals)
    start.run((replace(chunk, num_logit_rows=1),))
    start.run((start.sequence(0, token_ids=(0,), start=0, num_proposals=num_proposals),))
    if not method.has_kv or not config.speculation.adaptive or not config.speculation.max_drafts:
        return ()
    most_each = 1 + config.speculation.max_drafts
    num_tokens = min(_TEXT_TOKENS, context_limit - most_each - _NUM_PROPOSALS)
    if num_tokens <= _FIRST_ROW + most_each:
        return ()  # there is no room for drafts that are worth a choice
    texts = start.write_texts(num_tokens, vocab_size)
    most = min(config.max_sequences * most_each, config.max_rows_per_step, _MOST_ROWS)
    return tuple(start.measured(texts, 2**power) for power in range(most.bit_length()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _WarmUp:
    """Steps of sequences that nobody asked for. Text t has the blocks behind those of text t - 1."""

    runner: Runner
    config: EngineConfig
    num_blocks: int

    def write_texts(self, num_tokens: int, vocab_size: int) -> list[list[int]]:
        """What the model says: random tokens choose other experts than real ones, and more or fewer of them."""
        texts = [[number * _PRIME % vocab_size] for number in range(_NUM_TEXTS)]
        for start in range(num_tokens):
            rows = (
                self.sequence(number, token_ids=(text[-1],), start=start, num_proposals=0)
                for number, text in enumerate(texts)
            )
            for text, result in zip(texts, self.run(tuple(rows)).sequences, strict=True):
                # Weights that are no numbers say nothing; that is for the first request to tell.
                text.append(result.token_ids[0] if result.token_ids else text[-1])
        return texts

    def measured(self, texts: list[list[int]], num_rows: int) -> DraftedStep:
        """The cost of a step of so many rows, of no more sequences than there may be; each gets two drafts."""
        max_drafts, max_sequences = self.config.speculation.max_drafts, self.config.max_sequences
        num_drafts = min(_NUM_PROPOSALS, max_drafts)
        usual = 1 if num_rows <= 2 * _ROWS_EACH else min(_ROWS_EACH, 1 + max_drafts)
        rows_each = max(usual, -(-num_rows // max_sequences))
        num_sequences = -(-num_rows // rows_each)
        places = len(texts[0]) - rows_each - _FIRST_ROW
        sequences = []
        for number in range(num_sequences):
            text = number % len(texts)
            start = _FIRST_ROW + number // len(texts) * rows_each % places
            token_ids = tuple(texts[text][start : start + min(rows_each, num_rows - number * rows_each)])
            rows = self.sequence(text, token_ids=token_ids, start=start, num_proposals=num_drafts)
            sequences.append(replace(rows, sampling=_LIKELIEST))
        times = [self.run(tuple(sequences)).times for _ in range(_NUM_TIMES)]
        best = min(times, key=lambda time: time.forward_s + time.sample_s + time.draft_s)
        return DraftedStep(
            num_rows=num_rows,
            num_followed=num_rows,
            num_passes=max(num_drafts - 1, 0),
            num_further=num_sequences * max(num_drafts - 1, 0),
            model_s=best.forward_s + best.sample_s,
            extend_s=best.extend_s,
            draft_s=best.draft_s - best.extend_s,
        )

    def run(self, sequences: tuple[SequencePlan, ...]) -> StepResult:
        """A step as the engine would run it; its shape needs no agreement, since all ranks run the same."""
        plan = StepPlan(
            step_id=-1,
            sequences=sequences,
            num_rows=sum(len(sequence.token_ids) for sequence in sequences),
            num_draft_passes=max(
                max(sequence.num_proposals, int(sequence.draft_method.has_kv)) for sequence in sequences
            ),
        )
        return self.runner.run(replace(plan, shape=self.runner.shape(plan)))

    def sequence(self, text: int, *, token_ids: tuple[int, ...], start: int, num_proposals: int) -> SequencePlan:
        """Rows of a text, all with logits; where blocks are few, texts share them."""
        block_size = self.config.block_size
        num_of_each = -(-(_TEXT_TOKENS + _ROWS_EACH + _NUM_PROPOSALS) // block_size)
        num_used = -(-(start + len(token_ids) + max(num_proposals - 1, 0)) // block_size)
        blocks = range(text * num_of_each, text * num_of_each + num_used)
        return SequencePlan(
            sequence_id=-1 - text,
            token_ids=token_ids,
            start=start,
            block_table=tuple(block % self.num_blocks for block in blocks),
            num_logit_rows=len(token_ids),
            sampling=SamplingParams(max_tokens=1, top_k=2, seed=text),
            sequence_index=0,
            output_index=start,
            draft_method=self.config.speculation.loaded,
            num_proposals=num_proposals,
        )
