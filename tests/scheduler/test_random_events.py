"""Any order of events: nothing is lost, nothing told twice, every token is the right one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from scheduler.request import DraftMethod, Request, SamplingParams
from scheduler.scheduler import SchedulerConfig
from tests.scheduler.world import ERROR_TOKEN, VOCAB_SIZE, Foresees, World, prompt

# What a request says of drafting: mostly nothing.
DRAFTING = [(None, None), (None, None), (None, 1), (None, 9), (DraftMethod.NONE, None), (DraftMethod.NGRAM, 2)]


@st.composite
def configs(draw: st.DrawFn) -> SchedulerConfig:
    max_sequences = draw(st.integers(1, 6))
    model_method = draw(st.sampled_from([DraftMethod.NONE, DraftMethod.EAGLE3]))
    return SchedulerConfig(
        num_blocks=draw(st.integers(4, 24)),
        block_size=draw(st.sampled_from([1, 3, 4])),
        max_rows_per_step=max_sequences + draw(st.sampled_from([0, 1, 6, 40])),
        max_sequences=max_sequences,
        max_context=draw(st.integers(20, 60)),
        eos_token_ids=draw(st.sampled_from([(), (9,)])),
        prefix_cache=draw(st.booleans()),
        ageing_s=10.0,
        max_waiting=10_000,
        vocab_size=VOCAB_SIZE,
        model_method=model_method,
        draft_method=draw(st.sampled_from([DraftMethod.NONE, DraftMethod.NGRAM, model_method])),
        max_drafts=draw(st.sampled_from([0, 1, 3, 5])),
        adaptive_drafts=draw(st.booleans()),
    )


@st.composite
def samplings(draw: st.DrawFn) -> SamplingParams:
    num_prompt_logprobs = draw(st.sampled_from([None, None, 1]))
    max_tokens = draw(st.integers(1 if num_prompt_logprobs is None else 0, 24))
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens)),
        temperature=draw(st.sampled_from([0.0, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.2])),
        seed=draw(st.integers(0, 3)),
        stop_token_ids=draw(st.sampled_from([(), (3, 4, 5, 6, 7, 8)])),
        ignore_eos=draw(st.booleans()),
        num_logprobs=draw(st.sampled_from([None, 2])),
        num_prompt_logprobs=num_prompt_logprobs,
    )


class RandomEvents(RuleBasedStateMachine):
    """Requests whose prompts share beginnings, on a pool that is too small for them."""

    submitted: Bundle[str] = Bundle("submitted")

    @initialize(
        config=configs(),
        skill=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        row_s=st.sampled_from([0.0, 1e-4, 1e-3]),
        foresees=st.sampled_from(Foresees),
    )
    def start(self, config: SchedulerConfig, skill: float, row_s: float, foresees: Foresees) -> None:
        self.world = World(config, skill, row_s, foresees)
        self.aborted: set[str] = set()

    @rule(
        target=submitted,
        length=st.integers(1, 24),
        tail=st.lists(st.integers(0, ERROR_TOKEN), max_size=2),
        sampling=samplings(),
        num_sequences=st.sampled_from([1, 1, 3]),
        priority=st.integers(-2, 2),
        drafting=st.sampled_from(DRAFTING),
    )
    def submit(
        self,
        length: int,
        tail: list[int],
        sampling: SamplingParams,
        num_sequences: int,
        priority: int,
        drafting: tuple[DraftMethod | None, int | None],
    ) -> str:
        name = f"r{len(self.world.requests)}"
        asked = Request(
            request_id=name,
            prompt=(*prompt(length), *tail)[: self.world.config.context_limit - 1] or (1,),
            sampling=sampling,
            num_sequences=num_sequences,
            priority=priority,
            draft_method=drafting[0],
            max_drafts=drafting[1],
        )
        self.world.add(asked)
        return name

    @rule(target=submitted, asked=submitted, timeout_s=st.integers(-1, 6))
    def submit_with_deadline(self, asked: str, timeout_s: int) -> str:
        name = f"r{len(self.world.requests)}"
        deadline_s = self.world.clock.now_s + timeout_s
        self.world.add(replace(self.world.requests[asked], request_id=name, deadline_s=deadline_s))
        return name

    @rule(target=submitted, asked=submitted, index=st.integers(0, 2))
    def resume(self, asked: str, index: int) -> str:
        """As if the rank that served it had died after what was told so far."""
        name = f"r{len(self.world.requests)}"
        index %= self.world.requests[asked].num_sequences
        first = self.world.requests[asked].first_sequence_index + index
        had = (*self.world.requests[asked].resumed, *self.world.output(asked, first))
        lone = replace(self.world.requests[asked], request_id=name, num_sequences=1, first_sequence_index=first)
        self.world.add(replace(lone, resumed=had))
        return name

    @rule(asked=submitted)
    def abort(self, asked: str) -> None:
        self.world.engine.abort(asked)
        self.aborted.add(asked)

    @rule(elapsed_s=st.sampled_from([0.5, 3.0, 20.0]))
    def wait(self, elapsed_s: float) -> None:
        self.world.clock.now_s += elapsed_s

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.world.step()
            self.expect_ends(self.world.clock.now_s)

    @rule(asked=submitted, elapsed_s=st.sampled_from([0.0, 3.0]))
    def abort_in_flight(self, asked: str, elapsed_s: float) -> None:
        now_s = self.world.clock.now_s
        plan = self.world.engine.plan()
        result = self.world.engine.run(plan)
        self.abort(asked)
        self.world.clock.now_s += elapsed_s
        self.world.hear(self.world.engine.commit(plan, result))
        self.expect_ends(now_s)

    @rule(length=st.integers(1, 8))
    def arrive_alone(self, length: int) -> None:
        """A request of the foreground that is first in line waits for nothing that the background holds."""
        world = self.world
        if any(True for _ in world.scheduler._live.waiting):
            return
        name = f"r{len(world.requests)}"
        fitting = prompt(min(length, world.config.context_limit - 1))
        world.add(Request(request_id=name, prompt=fitting, sampling=SamplingParams(max_tokens=2)))
        turn = next(iter(world.scheduler._live.waiting)).turn
        num_rows = world.step_rows()
        waits = any(sequence.request.request_id == name for sequence in world.scheduler._live.waiting)
        later = [s for s in world.scheduler._live.running if s.request.priority < 0 and s.turn > turn]
        assert not waits or not later or num_rows >= world.config.max_rows_per_step, f"{name} waits for {later}"

    def expect_ends(self, planned_s: float) -> None:
        """What was aborted, and what was overdue when the step was planned, has ended with that step."""
        for (name, index), told in self.world.told.items():
            deadline_s = self.world.requests[name].deadline_s
            is_due = name in self.aborted or (deadline_s is not None and deadline_s <= planned_s)
            assert told.finish_reason or not is_due, f"{name}/{index} goes on"

    @invariant()
    def everything_adds_up(self) -> None:
        if hasattr(self, "world"):
            self.world.scheduler.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.run()
            self.world.assert_outputs()


TestRandomEvents = RandomEvents.TestCase
TestRandomEvents.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
