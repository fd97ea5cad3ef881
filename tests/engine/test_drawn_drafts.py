"""Drafts that are drawn and verified by rejection sampling leave the distribution of the output as it is."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any, cast

import pytest
import torch

from cluster.draft_share import DraftShare
from engine.build import build_engine
from engine.config import Acceptance, EngineConfig, SpeculationConfig
from engine.drafters.build import chain_drafter
from engine.drafters.draft_model import DraftModel
from engine.drafters.memory import DraftMemory
from engine.drafters.proposal_sizes import proposal_bytes
from kernels.paged_attention import KVLayer
from kernels.sample import draw_probabilities
from model.batch import Batch
from model.config import ModelConfig
from model.proposal_sizes import VERIFIED_AT_ONCE, verification_bytes
from model.proposals import Proposal, accept_or_replace
from model.sampling import SamplingRow, draw_settings
from scheduler.plan import SequencePlan
from scheduler.request import DraftMethod, Request, SamplingParams
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.drafting_engines import draft_model, drafting_engine, eagle3_folder
from tests.engine.mixed_requests import CPU, ROOMY
from tests.oracle.peak_of_tensors import PeakOfTensors

SHAPE = "C"
NUM_SEEDS = 1500
PROMPT = (5, 9, 17, 33)
TOKENS = tuple(range(40, 46))  # the effective vocabulary: others are too unlikely ever to come
BASE = SamplingParams(max_tokens=4, temperature=1.0, ignore_eos=True, logit_bias=tuple((i, 30.0) for i in TOKENS))
SETTINGS = {
    "bias": BASE,
    "top-k": dataclasses.replace(BASE, temperature=0.7, top_k=4),
    "all": dataclasses.replace(BASE, top_k=5, top_p=0.95, min_p=0.02, presence_penalty=0.7, repetition_penalty=1.05),
}
Joint = collections.Counter[tuple[int, ...]]


class Steered:
    """A draft model with random weights that at least prefers the tokens that can come."""

    def __init__(self, model: DraftModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        logits = self._model.logits(states).clone()
        ids = self._model.target_ids
        wanted = torch.isin(torch.arange(logits.shape[1]) if ids is None else ids, torch.tensor(TOKENS))
        assert wanted.any(), "the draft vocabulary has none of the tokens"
        logits[:, wanted] += 30.0
        return logits


class Fitful(Steered):
    """One that has no numbers behind an even token, a draft of its own among them."""

    def forward(self, states: torch.Tensor, batch: Batch, kv: KVLayer) -> torch.Tensor:
        states = self._model.forward(states, batch, kv)
        states[batch.token_ids % 2 == 0] = math.nan
        return states


def joint(
    sampling: SamplingParams, method: DraftMethod, first_seed: int, steered: type[Steered] = Steered
) -> tuple[Joint, int]:
    """How often each beginning of three tokens comes, one after the prompt and two of rounds; and tokens accepted."""
    config = dataclasses.replace(
        ROOMY,
        num_blocks=512,
        max_sequences=256,
        max_waiting=NUM_SEEDS,
        draft_method=method,
        model_method=method,
        max_drafts=0 if method is DraftMethod.NONE else 3,
        adaptive_drafts=False,
    )
    drafter = None
    if (model := draft_model(method, SHAPE)) is not None:
        drafter = chain_drafter(
            cast(DraftModel, steered(model)), config.num_blocks, config.block_size, torch.float32, CPU, DraftMemory(256)
        )
    engine, _ = drafting_engine(config, SHAPE, drafter=drafter)
    outputs: dict[str, list[int]] = {}
    for seed in range(first_seed, first_seed + NUM_SEEDS):
        outputs[str(seed)] = []
        engine.add(Request(request_id=str(seed), prompt=PROMPT, sampling=dataclasses.replace(sampling, seed=seed)))
    while engine.has_work:
        for delta in engine.step():
            outputs[delta.request_id] += delta.token_ids
    assert all(len(ids) == sampling.max_tokens for ids in outputs.values())
    return collections.Counter(tuple(ids[:3]) for ids in outputs.values()), sum(engine.stats().drafts.accepted)


def chi_square_p(statistic: float, freedom: int) -> float:
    """P(chi-square with `freedom` degrees > statistic)."""
    halves = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(halves[0], halves[1]))


def two_sample_p(a: Joint, b: Joint) -> float:
    """Whether two samples of one size come from one distribution; rare cells are one."""
    cells = collections.Counter[object]()
    difference = collections.Counter[object]()
    for cell in a.keys() | b.keys():
        pooled: object = cell if a[cell] + b[cell] >= 10 else "rare"
        cells[pooled] += a[cell] + b[cell]
        difference[pooled] += a[cell] - b[cell]
    statistic = sum(difference[cell] ** 2 / count for cell, count in cells.items())
    assert len(cells) > 8, "too few cells to see anything"
    return chi_square_p(statistic, len(cells) - 1)


@pytest.mark.parametrize("method", [DraftMethod.EAGLE3, DraftMethod.MTP])
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_joint_of_tokens_is_that_of_plain_decoding(settings: str, method: DraftMethod) -> None:
    plain, _ = joint(SETTINGS[settings], DraftMethod.NONE, 0)
    drawn, num_accepted = joint(SETTINGS[settings], method, NUM_SEEDS)
    assert num_accepted > 0
    assert two_sample_p(plain, drawn) > 1e-4


@pytest.mark.parametrize("method", [DraftMethod.EAGLE3, DraftMethod.MTP])
def test_which_drafts_are_drawn_does_not_depend_on_what_they_are(method: DraftMethod) -> None:
    """A draft is verified by the rule of its own draw, also where the next one could not be drawn because of it."""
    plain, _ = joint(SETTINGS["bias"], DraftMethod.NONE, 0)
    drawn, num_accepted = joint(SETTINGS["bias"], method, NUM_SEEDS, Fitful)
    assert num_accepted > 0
    assert two_sample_p(plain, drawn) > 1e-4


@pytest.mark.parametrize("is_narrow", [True, False], ids=["a narrow draft vocabulary", "the whole vocabulary"])
def test_one_row_is_distributed_as_the_model_says(is_narrow: bool) -> None:
    """One-sample chi-square of many rows, drafts drawn from another distribution."""
    numbers = torch.Generator().manual_seed(7)
    size, num_rows = 24, 40_000
    model = torch.rand(size, generator=numbers, dtype=torch.float64) ** 3
    model[:4] = 0.0  # what top-k left out
    model /= model.sum()
    ids = torch.arange(0, size, 2) if is_narrow else None
    chances = torch.rand(size if ids is None else len(ids), generator=numbers) ** 3
    chances /= chances.sum()
    picked = torch.multinomial(chances, num_rows, replacement=True, generator=numbers)
    drafts = (picked if ids is None else ids[picked]).tolist()
    tokens = accept_or_replace(
        model.expand(num_rows, size),
        [Proposal(token_id=draft, chances=chances, target_ids=ids) for draft in drafts],
        accept_points=torch.rand(num_rows, generator=numbers, dtype=torch.float64),
        points=torch.rand(num_rows, generator=numbers, dtype=torch.float64),
    )
    seen = torch.bincount(torch.tensor(tokens), minlength=size)
    assert not seen[:4].any(), "a token without probability"
    expected = model[4:] * num_rows
    assert chi_square_p(float(((seen[4:] - expected) ** 2 / expected).sum()), size - 5) > 1e-4


def test_a_model_that_drafts_for_itself_is_always_right() -> None:
    chances = torch.tensor([0.5, 0.25, 0.25])
    proposals = [Proposal(token_id=token, chances=chances, target_ids=None) for token in (0, 1, 2)]
    points = torch.tensor([0.0, 0.5, 1.0 - 2**-53], dtype=torch.float64)
    rows = chances.to(torch.float64).expand(3, 3)
    assert accept_or_replace(rows, proposals, accept_points=points, points=points) == [0, 1, 2]


def test_the_plan_counts_what_drawn_drafts_keep() -> None:
    """By the real proposals of a full batch, and by the tensors of a real verification."""
    config = EngineConfig(
        model_dir=str(tiny_checkpoint(SHAPE)),
        max_sequences=8,
        speculation=SpeculationConfig(
            method=DraftMethod.EAGLE3,
            draft_dir=str(eagle3_folder(SHAPE)),
            max_drafts=3,
            acceptance=Acceptance.REJECTION,
            adaptive=False,
        ),
        num_blocks=64,
        max_context=128,
    )
    model = ModelConfig.from_dir(config.model_dir)
    planned = proposal_bytes(config, model)
    assert planned == DraftShare.of(config, model).proposal_bytes
    matched = dataclasses.replace(config.speculation, acceptance=Acceptance.MATCH)
    assert proposal_bytes(dataclasses.replace(config, speculation=matched), model) == 0

    engine = build_engine(config)
    long = dataclasses.replace(BASE, max_tokens=20)
    for seed in range(8):
        engine.add(Request(request_id=str(seed), prompt=PROMPT, sampling=dataclasses.replace(long, seed=seed)))
    engine.step()
    memory = engine._runner._drafter.memory  # type: ignore[attr-defined]
    kept = [proposal.chances for mine in memory._rounds.values() for proposal in mine.proposals]
    assert len(kept) == 8 * 3
    storages = {chances.untyped_storage().data_ptr(): chances.untyped_storage().nbytes() for chances in kept}
    assert sum(storages.values()) == planned - verification_bytes(model.vocab_size)

    rows = VERIFIED_AT_ONCE
    settings = draw_settings([SamplingRow(temperature=1.0, top_k=9, seed=seed) for seed in range(rows)], CPU)
    proposal = Proposal(token_id=7, chances=torch.full((model.vocab_size,), 1 / model.vocab_size), target_ids=None)
    with PeakOfTensors() as peak:
        probabilities = draw_probabilities(torch.zeros(rows, model.vocab_size), settings)
        accept_or_replace(probabilities, [proposal] * rows, accept_points=settings.points, points=settings.points)
    assert peak.peak_bytes <= verification_bytes(model.vocab_size)


def test_rounds_are_remembered_once_and_only_as_they_were() -> None:
    proposal = Proposal(token_id=7, chances=torch.ones(8), target_ids=None)
    other = dataclasses.replace(proposal, token_id=6)

    def planned(sequence_id: int, *drafts: int, output_index: int = 2) -> SequencePlan:
        return SequencePlan(
            sequence_id=sequence_id,
            token_ids=(1, *drafts),
            start=0,
            block_table=(0,),
            num_logit_rows=1 + len(drafts),
            sampling=BASE,
            sequence_index=0,
            output_index=output_index,
        )

    memory = DraftMemory(2)
    memory.keep(1, 2, proposal)
    memory.keep(1, 3, other)
    assert memory.take(planned(1, 7)) == (proposal,)
    memory.keep(1, 2, proposal)
    memory.keep(1, 3, other)
    assert memory.take(planned(1, 7, 6)) == (proposal, other)
    assert memory.take(planned(1, 7)) == ()
    for wrong in (planned(1, 6), planned(1, 7, output_index=3), planned(1)):
        memory.keep(1, 2, proposal)
        assert memory.take(wrong) == ()
    for sequence_id in (1, 2, 3):
        memory.keep(sequence_id, 2, proposal)
    assert memory.take(planned(1, 7)) == (), "more rounds than there is room for"
    assert memory.take(planned(3, 7)) == (proposal,)
