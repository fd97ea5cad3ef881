"""What drafting may not cost or change with the shipped model, whose draft models were trained and are often right."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.speculation import PROMPTS, read_prompts
from engine.build import build_engine
from engine.config import EngineConfig, KernelChoice, Precision, SpeculationConfig
from engine.engine import Engine
from kernels import native
from scheduler.draft_tally import DraftTally
from scheduler.request import DraftCounts, DraftMethod, Request, SamplingParams, TokenDelta, TokenLogprob

MODEL = Path(__file__).parents[2] / "models" / "sigmoe-demo"
HEAD = "model.safetensors"
GREEDY = SamplingParams(max_tokens=24, temperature=0.0)
DRAWN = dataclasses.replace(GREEDY, max_tokens=32, temperature=0.8)
METHODS = (DraftMethod.EAGLE3, DraftMethod.MTP, DraftMethod.NGRAM)


def shipped(
    method: DraftMethod,
    precision: Precision = Precision.FP32,
    draft_dir: Path | None = None,
    *,
    is_adaptive: bool = False,
    max_sequences: int = 32,
    kernels: KernelChoice = KernelChoice.AUTO,
) -> Engine:
    speculation = SpeculationConfig(
        method=method,
        draft_dir=None if draft_dir is None else str(draft_dir),
        max_drafts=3,
        adaptive=is_adaptive,
        ngram_shortest=1,
    )
    return build_engine(
        EngineConfig(
            model_dir=str(MODEL),
            precision=precision,
            max_sequences=max_sequences,
            max_context=512,
            num_threads=1,
            kernels=kernels,
            speculation=speculation,
        )
    )


@pytest.fixture
def kernels_again() -> Iterator[None]:
    """Those that the other tests have, behind a test that chooses."""
    yield
    native.use("auto")


@functools.cache
def prompts(number: int) -> tuple[tuple[int, ...], ...]:
    return tuple(read_prompts(PROMPTS, MODEL)[:number])


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    drafts: DraftCounts


def answers(engine: Engine, asked: tuple[tuple[int, ...], ...], sampling: SamplingParams = GREEDY) -> list[Answer]:
    told: dict[str, list[TokenDelta]] = {str(number): [] for number in range(len(asked))}
    for number, prompt in enumerate(asked):
        how = dataclasses.replace(sampling, seed=number)
        engine.add(Request(request_id=str(number), prompt=prompt, sampling=how))
    while engine.has_work:
        for delta in engine.step():
            told[delta.request_id].append(delta)
    found = []
    for deltas in told.values():
        tally = DraftTally()
        for delta in deltas:
            tally.take(delta.rounds, len(delta.token_ids))
        tokens = tuple(token for delta in deltas for token in delta.token_ids)
        scores = tuple(score for delta in deltas for score in delta.logprobs)
        found.append(Answer(tokens, scores, tally.counts()))
    return found


@functools.cache
def common(number: int) -> tuple[int, ...]:
    """The tokens that come most in drawn answers, most first."""
    told = answers(shipped(DraftMethod.NONE), prompts(8), DRAWN)
    counts = collections.Counter(token for answer in told for token in answer.tokens)
    return tuple(token for token, _ in counts.most_common(number))


def biased(how: SamplingParams) -> SamplingParams:
    """Some of what would come is unlikely then, some of what would hardly come likely."""
    bias = ((token, -8.0 if at % 2 else 3.0) for at, token in enumerate(common(16)))
    return dataclasses.replace(how, logit_bias=tuple(bias))


def stopping(how: SamplingParams, min_tokens: int) -> SamplingParams:
    return dataclasses.replace(how, stop_token_ids=common(8)[4:], min_tokens=min_tokens)


SETTINGS: dict[str, Callable[[], SamplingParams]] = {
    "bias": lambda: biased(DRAWN),
    "min tokens": lambda: stopping(DRAWN, 9),
    "both": lambda: stopping(biased(DRAWN), 12),
    "all": lambda: dataclasses.replace(
        stopping(biased(DRAWN), 12), top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.05, presence_penalty=0.2
    ),
}


@functools.cache
def plain(name: str) -> list[tuple[int, ...]]:
    """The answers without drafts; where they have a least length, some would have stopped before it."""
    how, engine = SETTINGS[name](), shipped(DraftMethod.NONE)
    told = [answer.tokens for answer in answers(engine, prompts(8), how)]
    if how.min_tokens:
        assert how.min_tokens <= min(map(len, told)) < how.max_tokens
        early = answers(engine, prompts(8), dataclasses.replace(how, min_tokens=0))
        assert sum(len(answer.tokens) < how.min_tokens for answer in early) > 1
    return told


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SETTINGS)
def test_biased_and_stopped_answers_are_drawn_as_without_drafts(name: str, method: DraftMethod) -> None:
    """Every row of a round has its own place in the output, and its own logits with the bias."""
    drafted = answers(shipped(method), prompts(8), SETTINGS[name]())
    assert [answer.tokens for answer in drafted] == plain(name)
    assert sum(sum(answer.drafts.accepted) for answer in drafted) > 0


@pytest.mark.parametrize("method", METHODS)
def test_what_is_accepted_does_not_depend_on_how_many_run(method: DraftMethod) -> None:
    """Thirty-two at once, and one after the other."""
    how = dataclasses.replace(GREEDY, max_tokens=16)
    together, one_by_one = (answers(shipped(method, max_sequences=most), prompts(32), how) for most in (32, 1))
    assert together == one_by_one
    assert sum(sum(answer.drafts.accepted) for answer in together) > 0


@pytest.mark.parametrize("method", METHODS)
def test_drafting_costs_no_hit_in_the_prefix_cache(method: DraftMethod) -> None:
    """Next turns of conversations, one prompt twice and two that part within a block, in the same order.

    At the end of a block it is one block: its key covers the token behind it, which the draft model has seen.
    """
    found: list[tuple[int, int]] = []
    for how in (DraftMethod.NONE, method):
        engine = shipped(how)
        first = [answer.tokens for answer in answers(engine, prompts(6))]
        turns = [(*before, *said, *before[:20]) for before, said in zip(prompts(6), first, strict=True)]
        for turn in (*turns, turns[0], (*turns[1][:40], *turns[2])):
            answers(engine, (turn,))
        stats = engine.stats()
        found.append((stats.prefix_hit_tokens, stats.prefix_query_tokens))
    assert found[0] == found[1] and found[0][0] > 0


@pytest.mark.parametrize(
    ("method", "kernels"),
    [*((method, KernelChoice.AUTO) for method in METHODS), (DraftMethod.EAGLE3, KernelChoice.TORCH)],
)
def test_in_bf16_answers_part_only_where_two_tokens_are_about_as_likely(
    method: DraftMethod, kernels: KernelChoice, kernels_again: None
) -> None:
    """A row's last bits may depend on how many rows are beside it; nothing else may (speculative-decoding §9 A 4)."""
    scored = dataclasses.replace(GREEDY, max_tokens=48, num_logprobs=5)
    undrafted = answers(shipped(DraftMethod.NONE, Precision.BF16, kernels=kernels), prompts(16), scored)
    drafted = answers(shipped(method, Precision.BF16, kernels=kernels), prompts(16), scored)
    assert sum(sum(answer.drafts.accepted) for answer in drafted) > 0
    noise, margins, num_equal = 0.0, list[float](), 0
    for one, other in zip(undrafted, drafted, strict=True):
        pairs = itertools.zip_longest(one.tokens, other.tokens)
        shared = next((at for at, (a, b) in enumerate(pairs) if a != b), len(one.tokens))
        num_equal += shared == len(one.tokens) == len(other.tokens)
        for mine, theirs in zip(one.logprobs[:shared], other.logprobs[:shared], strict=True):
            noise = max(noise, abs(mine.logprob - theirs.logprob))
        if shared < min(len(one.tokens), len(other.tokens)):
            likely = dict(one.logprobs[shared].top)
            margins.append(likely[one.tokens[shared]] - likely.get(other.tokens[shared], float("-inf")))
    assert noise < 0.2
    assert all(margin <= 2 * noise for margin in margins), (noise, margins)
    assert num_equal >= 12


def test_a_draft_vocabulary_without_any_token_of_an_answer(tmp_path: Path) -> None:
    """Nothing is accepted, the answers are right, and drafting comes to rest."""
    sampling = dataclasses.replace(GREEDY, max_tokens=200, ignore_eos=True)
    asked = prompts(4)
    expected = [answer.tokens for answer in answers(shipped(DraftMethod.NONE), asked, sampling)]
    tensors = load_file(MODEL / "eagle3" / HEAD)
    ids = torch.arange(len(tensors["d2t"])) + tensors["d2t"]
    said = {token for tokens in expected for token in tokens}
    others = [token for token in range(len(tensors["t2d"])) if token not in said][: len(ids)]
    tensors["d2t"] = torch.tensor(others) - torch.arange(len(ids))
    tensors["t2d"] = torch.isin(torch.arange(len(tensors["t2d"])), torch.tensor(others))
    save_file(tensors, tmp_path / HEAD)
    (tmp_path / "config.json").write_bytes((MODEL / "eagle3" / "config.json").read_bytes())
    engine = shipped(DraftMethod.EAGLE3, draft_dir=tmp_path, is_adaptive=True)
    found = answers(engine, asked, sampling)
    assert [answer.tokens for answer in found] == expected
    counts = engine.stats().drafts
    assert sum(counts.accepted) == 0
    assert 0 < counts.num_rounds < 200  # of 796 if it went on
