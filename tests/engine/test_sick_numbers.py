"""Numbers that are none, in one sequence or in the draft model, harm nobody else and change no other token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch

from engine.config import Acceptance
from engine.drafters.build import chain_drafter
from engine.drafters.draft_model import DraftModel
from engine.drafters.memory import DraftMemory
from engine.engine import Engine
from kernels.paged_attention import KVLayer
from model.batch import Batch, ModelOutput
from model.proposals import Proposal
from scheduler.plan import SequencePlan
from scheduler.request import DraftMethod, FinishReason, Request, SamplingParams, TokenDelta
from tests.engine.drafting_engines import draft_model, drafting_engine
from tests.engine.graph_engines import drafting, graph_engine
from tests.engine.mixed_requests import CPU, ROOMY, alone, mixed_requests, run_all

SHAPE = "C"
METHODS = [DraftMethod.EAGLE3, DraftMethod.MTP]
NAN, INF = math.nan, math.inf


def engine_with(
    method: DraftMethod, acceptance: Acceptance, model: DraftModel, *, is_recorded: bool
) -> tuple[Engine, list[KVLayer]]:
    """An engine that drafts, and the model's cache."""
    config = drafting(ROOMY, method, 3)
    if is_recorded:
        world = graph_engine(config, SHAPE, model, acceptance=acceptance)
        return world.engine, list(world.kv.layers)
    memory = DraftMemory(config.max_sequences) if acceptance is Acceptance.REJECTION else None
    drafter = chain_drafter(model, config.num_blocks, config.block_size, torch.float32, CPU, memory)
    engine, _ = drafting_engine(config, SHAPE, drafter=drafter)
    return engine, list(cast(Any, engine)._runner._kv.layers)


@pytest.mark.parametrize("is_recorded", [False, True], ids=["as it is", "in buckets"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("acceptance", Acceptance)
@pytest.mark.parametrize("method", METHODS)
def test_a_poisoned_sequence_ends_and_its_neighbour_goes_on(
    method: DraftMethod, acceptance: Acceptance, temperature: float, is_recorded: bool
) -> None:
    how = SamplingParams(max_tokens=12, temperature=temperature, seed=5, ignore_eos=True)
    bad = Request(request_id="bad", prompt=tuple(range(5, 25)), sampling=how)
    good = Request(request_id="good", prompt=tuple(range(45, 65)), sampling=how)

    def outcome(requests: list[Request]) -> dict[str, tuple[list[int], TokenDelta]]:
        model = draft_model(method, SHAPE)
        assert model is not None
        engine, layers = engine_with(method, acceptance, model, is_recorded=is_recorded)
        for request in requests:
            engine.add(request)
        told: dict[str, tuple[list[int], TokenDelta]] = {}
        while engine.has_work:
            for delta in engine.step():
                tokens, _ = told.setdefault(delta.request_id, ([], delta))
                told[delta.request_id] = (tokens + list(delta.token_ids), delta)
            for sequence in cast(Any, engine)._scheduler._live.running:
                if sequence.request.request_id == "bad":
                    for layer in layers:
                        layer.value[sequence.block_table] = NAN
        engine.check_integrity()
        return told

    both, by_itself = outcome([bad, good]), outcome([good])
    assert both["bad"][1].finish_reason is FinishReason.ERROR and "finite" in both["bad"][1].error
    assert both["good"][1].finish_reason is FinishReason.LENGTH
    assert both["good"][0] == by_itself["good"][0] and len(both["good"][0]) == 12


class Sick:
    """A draft model with its numbers changed on the way."""

    def __init__(
        self,
        model: DraftModel,
        *,
        states: Callable[[torch.Tensor], torch.Tensor] = lambda states: states,
        logits: Callable[[torch.Tensor], torch.Tensor] = lambda logits: logits,
    ) -> None:
        self._model, self._states, self._logits = model, states, logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def first_states(self, output: ModelOutput) -> torch.Tensor:
        return self._states(self._model.first_states(output).clone())

    def forward(self, states: torch.Tensor, batch: Batch, kv: KVLayer) -> torch.Tensor:
        # As a vocabulary of rows in memory would be read on a GPU: beyond its end.
        assert ((batch.token_ids >= 0) & (batch.token_ids < 512)).all(), f"{batch.token_ids} go to the embedding"
        return self._model.forward(states, batch, kv)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        return self._logits(self._model.logits(states).clone())


SICKNESSES: dict[str, dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "lm_head NaN": {"logits": lambda logits: logits.fill_(NAN)},
    "lm_head inf": {"logits": lambda logits: logits.fill_(INF)},
    "lm_head -inf": {"logits": lambda logits: logits.fill_(-INF)},
    "a token NaN": {"logits": lambda logits: logits.index_fill_(1, torch.tensor([7]), NAN)},
    "a token inf": {"logits": lambda logits: logits.index_fill_(1, torch.tensor([7]), INF)},
    "fc NaN": {"states": lambda states: states.fill_(NAN)},
    "fc inf": {"states": lambda states: states.fill_(INF)},
}


@pytest.mark.parametrize("is_recorded", [False, True], ids=["as it is", "in buckets"])
@pytest.mark.parametrize("sickness", SICKNESSES)
@pytest.mark.parametrize("acceptance", Acceptance)
@pytest.mark.parametrize("method", METHODS)
def test_a_sick_draft_model_costs_nothing_but_its_drafts(
    method: DraftMethod, acceptance: Acceptance, sickness: str, is_recorded: bool
) -> None:
    """No draft is drawn, so that all are matched: with either rule out comes what plain decoding yields."""
    model = draft_model(method, SHAPE)
    assert model is not None
    sick = cast(DraftModel, Sick(model, **SICKNESSES[sickness]))
    engine, _ = engine_with(method, acceptance, sick, is_recorded=is_recorded)
    assert run_all(engine, mixed_requests()) == alone(SHAPE)
    assert engine.stats().drafts.num_rounds > 0


@pytest.mark.parametrize("is_recorded", [False, True], ids=["as it is", "in buckets"])
def test_nothing_is_drafted_for_a_sequence_that_ended_with_an_error(is_recorded: bool) -> None:
    model = draft_model(DraftMethod.EAGLE3, SHAPE)
    assert model is not None
    engine, layers = engine_with(DraftMethod.EAGLE3, Acceptance.MATCH, model, is_recorded=is_recorded)
    engine.add(Request(request_id="bad", prompt=(5, 6, 7), sampling=SamplingParams(max_tokens=9, ignore_eos=True)))
    engine.step()
    for layer in layers:
        layer.value.fill_(NAN)
    plan = engine.plan()
    assert plan.sequences[0].num_proposals and (plan.shape is not None) is is_recorded
    result = engine.run(plan)
    assert result.sequences[0].error and not result.sequences[0].draft_ids
    engine.commit(plan, result)


def test_a_draft_that_was_not_drawn_leaves_the_others_of_its_round_their_proposals() -> None:
    def planned(*drafts: int) -> SequencePlan:
        return SequencePlan(
            sequence_id=1,
            token_ids=(1, *drafts),
            start=0,
            block_table=(0,),
            num_logit_rows=1 + len(drafts),
            sampling=SamplingParams(max_tokens=4),
            sequence_index=0,
            output_index=2,
        )

    def rounds() -> Iterator[DraftMemory]:
        while True:
            memory = DraftMemory(2)
            for ahead, kept in enumerate((proposal, None, proposal)):
                memory.keep(1, 2 + ahead, kept)
            yield memory

    proposal = Proposal(token_id=7, chances=torch.ones(8), target_ids=None)
    fresh = rounds()
    assert next(fresh).take(planned(7, 3, 7)) == (proposal, None, proposal)
    assert next(fresh).take(planned(7, 3)) == (proposal, None)
    assert next(fresh).take(planned(6, 3, 7)) == next(fresh).take(planned(7, 3, 6)) == ()
