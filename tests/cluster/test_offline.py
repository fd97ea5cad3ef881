"""The engine in one process, over simulated rows: texts, stops, refusals, and nothing left behind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from cluster.offline import Answer, OfflineEngine
from cluster.tokenizer import Tokenizer
from engine.engine import Engine
from engine.simulated_runner import SimulatedRunner, simulated_output
from scheduler.request import FinishReason, SamplingParams
from scheduler.scheduler import Scheduler, SchedulerConfig
from tests.cluster.checkpoint_folder import END, VOCAB_SIZE, train_tokenizer

BLOCKS, BLOCK_SIZE = 64, 4
PLAIN = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def make_engine() -> Engine:
    config = SchedulerConfig(
        num_blocks=BLOCKS,
        block_size=BLOCK_SIZE,
        max_rows_per_step=16,
        max_sequences=8,
        max_context=100,
        eos_token_ids=(END,),
        vocab_size=VOCAB_SIZE,
    )
    runner = SimulatedRunner(block_size=BLOCK_SIZE, vocab_size=VOCAB_SIZE)
    return Engine(Scheduler(config, itertools.count().__next__), runner)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = make_engine()
    yield made
    assert not made.has_work
    assert made.stats().num_free_blocks == BLOCKS
    made.check_integrity()


@pytest.fixture
def offline(engine: Engine) -> OfflineEngine:
    return OfflineEngine(engine, Tokenizer(train_tokenizer()), (END,))


def by_prompt(answers: Iterator[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: (answer.prompt_index, answer.sequence_index))


def expected(prompt: tuple[int, ...], index: int = 0, sampling: SamplingParams = PLAIN) -> tuple[int, ...]:
    return tuple(simulated_output(prompt, sampling, vocab_size=VOCAB_SIZE, sequence_index=index))


def test_every_prompt_is_answered_whatever_the_batch(offline: OfflineEngine) -> None:
    prompts = [(1 + i % 7, 5, 9) for i in range(1500)]
    answers = by_prompt(offline.generate(prompts, PLAIN))
    assert [answer.prompt_index for answer in answers] == list(range(1500))
    assert all(answer.token_ids == expected(prompts[answer.prompt_index]) for answer in answers)
    assert all(answer.usage is not None and answer.usage.num_output_tokens == 12 for answer in answers)


def test_prompts_are_drawn_as_there_is_room(offline: OfflineEngine) -> None:
    drawn = itertools.count()
    answers = offline.generate(((next(drawn) % 9, 3) for _ in itertools.count()), PLAIN)
    for _ in range(10):
        next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert next(drawn) < 1200


def test_a_bad_prompt_disturbs_no_other(offline: OfflineEngine) -> None:
    good = (4, 5)
    answers = by_prompt(offline.generate([good, (), (VOCAB_SIZE,), (1,) * 100, good], PLAIN))
    assert [answer.finish_reason is FinishReason.ERROR for answer in answers] == [False, True, True, True, False]
    assert all(answer.error for answer in answers[1:4])
    assert answers[0].token_ids == answers[4].token_ids == expected(good)


def test_a_stop_string_ends_one_sequence_of_several(offline: OfflineEngine) -> None:
    sampling = SamplingParams(max_tokens=30, temperature=1.0, seed=3, ignore_eos=True)
    whole = by_prompt(offline.generate(["What is asthma?"], sampling, num_sequences=3))
    assert len({answer.text for answer in whole}) == 3
    stop = whole[1].text[4:7]
    stopped = by_prompt(offline.generate(["What is asthma?"], sampling, num_sequences=3, stop=[stop]))
    for before, after in zip(whole, stopped, strict=True):
        assert after.text == before.text.split(stop)[0]
        assert (after.finish_reason is FinishReason.STOP) == (stop in before.text)


def test_leaving_early_frees_everything(offline: OfflineEngine, engine: Engine) -> None:
    answers = offline.generate([(1, 2, 3)] * 40, PLAIN)
    next(answers)
    assert engine.has_work
    answers.close()  # type: ignore[attr-defined]
    assert not engine.has_work
    assert len(list(offline.generate([(1, 2, 3)], PLAIN))) == 1


def test_log_probabilities_come_whole(offline: OfflineEngine) -> None:
    sampling = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True, num_logprobs=0, num_prompt_logprobs=0)
    (answer,) = offline.generate([(1, 2, 3)], sampling)
    assert [entry.token_id for entry in answer.logprobs] == list(answer.token_ids)
    assert [entry.token_id for entry in answer.prompt_logprobs] == [2, 3]
