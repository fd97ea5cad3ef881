"""A scheduler with a simulated runner and a clock that moves by hand; everything it hands out is written down."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from engine.engine import Engine
from engine.runner import Foresight, Runner, nothing_foreseen
from engine.simulated_runner import SimulatedRunner, simulated_output
from scheduler.draft_tally import DraftTally
from scheduler.plan import SequencePlan, SequenceResult, StepPlan, StepResult, StepShape, StepTimes
from scheduler.request import DraftCounts, FinishReason, Request, SamplingParams, TokenDelta, TokenLogprob, Usage
from scheduler.scheduler import Scheduler, SchedulerConfig

VOCAB_SIZE = 64
ERROR_TOKEN = VOCAB_SIZE - 1  # which the simulated model never yields


@dataclass
class FakeClock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Told:
    """All that was said of one sequence."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    num_deltas: int = 0
    finish_reason: FinishReason | None = None
    error: str = ""
    usage: Usage | None = None
    tally: DraftTally = field(default_factory=DraftTally)

    @property
    def drafts(self) -> DraftCounts:
        return self.tally.counts()


# Small enough that every limit is soon met; tests replace what they are about.
CONFIG = SchedulerConfig(
    num_blocks=64,
    block_size=4,
    max_rows_per_step=32,
    max_sequences=8,
    max_context=256,
    max_waiting=1000,
    vocab_size=VOCAB_SIZE,
)


def prompt(length: int, first: int = 1) -> tuple[int, ...]:
    """Some tokens; prompts with the same `first` share their beginning, others share nothing."""
    return tuple((first + 7 * i * first + i // 5) % (VOCAB_SIZE - 1) for i in range(length))


def request(request_id: str, length: int = 6, max_tokens: int = 4, first: int = 1, priority: int = 0) -> Request:
    """A greedy request. What else is special about one is said by `dataclasses.replace` and `asking`."""
    return Request(
        request_id=request_id,
        prompt=prompt(length, first),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
        priority=priority,
    )


def asking(asked: Request, **sampling: Any) -> Request:
    """The same request with other sampling settings."""
    return replace(asked, sampling=replace(asked.sampling, **sampling))


class Foresees(Enum):
    """What a world does with the next step before it is planned."""

    NOTHING = "does not ask for it"
    ALONE = "launches what is certain of it, and what was not foreseen beside"
    IN_GROUP = "launches it, and lets wait what was not foreseen"


class Foreseeing:
    """A runner that asks for the next step's rows in every step, and tells which of them were planned as foreseen."""

    def __init__(self, runner: Runner, *, is_alone: bool) -> None:
        self.num_foreseen = 0  # sequences that were foreseen and planned
        self.num_right = 0
        self._runner = runner
        self.num_postponed = 0
        self._foreseen: dict[int, tuple[SequencePlan, SequenceResult]] = {}  # with what came of the step before
        self._is_alone = is_alone
        self._is_launched = False

    def shape(self, plan: StepPlan) -> StepShape | None:
        return StepShape(num_sequences=len(plan.sequences), most_rows=1)

    def under_way(self, plan: StepPlan) -> StepPlan | None:
        if self._is_alone or not self._is_launched:
            return None
        sequences = tuple(planned for planned in plan.sequences if planned == self._as_foreseen(planned.sequence_id))
        self.num_postponed += len(plan.sequences) - len(sequences)
        num_rows = sum(len(planned.token_ids) for planned in sequences)
        return replace(plan, sequences=sequences, num_rows=num_rows, is_launched=True)

    def run(self, plan: StepPlan, foresee: Foresight = nothing_foreseen) -> StepResult:
        self._compare(plan)
        result = self._runner.run(plan)
        outcomes = {one.sequence_id: outcome for one, outcome in zip(plan.sequences, result.sequences, strict=True)}
        coming = foresee()
        self._is_launched = coming is not None
        sequences = () if coming is None else coming.sequences
        self._foreseen = {one.sequence_id: (one, outcomes[one.sequence_id]) for one in sequences}
        return result

    def _compare(self, plan: StepPlan) -> None:
        for planned in plan.sequences:
            if planned.sequence_id in self._foreseen:
                self.num_foreseen += 1
                self.num_right += planned == self._as_foreseen(planned.sequence_id)

    def _as_foreseen(self, sequence_id: int) -> SequencePlan | None:
        """What was foreseen, with what came of the step before."""
        foreseen, outcome = self._foreseen.get(sequence_id, (None, SequenceResult()))
        if foreseen is None or not outcome.token_ids:
            return None
        num_accepted = len(outcome.token_ids) - 1
        return replace(
            foreseen,
            start=foreseen.start + num_accepted,
            output_index=foreseen.output_index + num_accepted,
            token_ids=(outcome.token_ids[-1], *outcome.draft_ids),
        )


class World:
    def __init__(
        self,
        config: SchedulerConfig = CONFIG,
        draft_skill: float = 0.7,
        row_s: float = 0.0,
        foresees: Foresees = Foresees.NOTHING,
    ) -> None:
        """Steps say that they took 1 ms, and `row_s` for each row that is not the first of its sequence."""
        self.config = config
        self.clock = FakeClock()
        self.scheduler = Scheduler(config, self.clock)
        self.plans: list[StepPlan] = []
        runner = SimulatedRunner(
            block_size=config.block_size,
            vocab_size=ERROR_TOKEN,
            error_token_id=ERROR_TOKEN,
            draft_skill=draft_skill,
            on_step=self.plans.append,
            times=lambda plan: StepTimes(forward_s=1e-3 + row_s * (plan.num_rows - len(plan.sequences))),
        )
        self.foreseeing = Foreseeing(runner, is_alone=foresees is Foresees.ALONE)
        self.engine = Engine(self.scheduler, runner if foresees is Foresees.NOTHING else self.foreseeing)
        self.requests: dict[str, Request] = {}
        self.told: dict[tuple[str, int], Told] = {}

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.engine.add(request)
            self.note(request)

    def note(self, request: Request) -> None:
        """Expect deltas of this request from now on."""
        self.requests[request.request_id] = request
        for index in range(request.first_sequence_index, request.first_sequence_index + request.num_sequences):
            self.told[request.request_id, index] = Told()

    def step(self) -> list[TokenDelta]:
        """One step, between whose halves and after which everything must add up."""
        plan = self.engine.plan()
        self.scheduler.check()
        deltas = self.engine.execute(plan)
        self.hear(deltas)
        self.scheduler.check()
        return deltas

    def step_rows(self) -> int:
        """One step; returns how many rows it had."""
        num_before = len(self.plans)
        self.step()
        return sum(plan.num_rows for plan in self.plans[num_before:])

    def run(self, max_steps: int = 2000) -> None:
        """Steps until nothing is left to do."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                break
            self.step()
        else:
            raise AssertionError(f"still busy after {max_steps} steps: {self.scheduler.stats()}")
        stats = self.scheduler.stats()
        assert stats.num_free_blocks == stats.num_blocks, f"blocks are lost: {stats}"
        assert all(told.finish_reason for told in self.told.values()), "a sequence has no end"

    def hear(self, deltas: list[TokenDelta]) -> None:
        for delta in deltas:
            told = self.told[delta.request_id, delta.sequence_index]
            assert told.finish_reason is None, f"{delta.request_id} goes on after its end: {delta}"
            assert delta.prompt_logprobs == () or told.num_deltas == 0, "prompt scores come with the first delta alone"
            assert not delta.rounds or sum(one.num_committed for one in delta.rounds) == len(delta.token_ids)
            told.num_deltas += 1
            told.tally.take(delta.rounds, len(delta.token_ids))
            told.token_ids += delta.token_ids
            told.logprobs += delta.logprobs
            told.prompt_logprobs += delta.prompt_logprobs
            told.finish_reason, told.error, told.usage = delta.finish_reason, delta.error, delta.usage
            assert (delta.usage is None) == (delta.finish_reason is None), "usage comes with the end"

    def output(self, request_id: str, index: int = 0) -> tuple[int, ...]:
        return tuple(self.told[request_id, index].token_ids)

    def expected(self, request_id: str, index: int = 0) -> tuple[int, ...]:
        """What the sequence must yield, from the pure function alone; what was resumed is not told again."""
        request = self.requests[request_id]
        sampling = request.sampling
        ends = (
            sampling.stop_token_ids if sampling.ignore_eos else (*self.config.eos_token_ids, *sampling.stop_token_ids)
        )
        whole = simulated_output(
            request.prompt,
            sampling,
            vocab_size=ERROR_TOKEN,
            stop_token_ids=ends,
            sequence_index=index,
            max_context=self.config.context_limit,
        )
        assert whole[: len(request.resumed)] == request.resumed
        return whole[len(request.resumed) :]

    def assert_outputs(self) -> None:
        """Everything that came to its own end says what the pure function says; what was cut short, the beginning."""
        for (request_id, index), told in self.told.items():
            output, expected = tuple(told.token_ids), self.expected(request_id, index)
            if told.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert output == expected, f"{request_id}/{index}: {output}, should be {expected}"
            else:
                assert output == expected[: len(output)], f"{request_id}/{index}: {output}, should begin {expected}"
            self._assert_scores(self.requests[request_id], index, told)

    def _assert_scores(self, request: Request, index: int, told: Told) -> None:
        """Every token has its log-probability where these were asked for, those of the prompt as soon as one came."""
        scored = told.token_ids if request.sampling.num_logprobs is not None else []
        assert [score.token_id for score in told.logprobs] == scored
        is_first = index == request.first_sequence_index and not request.resumed
        is_due = bool(told.token_ids) or told.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        wanted = request.sampling.num_prompt_logprobs is not None and is_first and is_due
        assert [score.token_id for score in told.prompt_logprobs] == (list(request.prompt[1:]) if wanted else [])

    def rows(self, request_id: str, step: int = -1) -> int:
        """The rows that the sequences of a request had in one step."""
        sampling = self.requests[request_id].sampling
        return sum(len(planned.token_ids) for planned in self.plans[step].sequences if planned.sampling is sampling)
