"""Steps that are launched while the host does not know yet what the one before them accepts: nothing comes out otherwise.

Drafts are right or wrong as a table says, so that rounds accept none, some and all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels.paged_attention import KVLayer
from scheduler.plan import StepPlan
from scheduler.request import DraftMethod, FinishReason, Request, SamplingParams, TokenDelta
from tests.engine.drafting_engines import Knowing, draft_model, values_of
from tests.engine.graph_engines import GraphWorld, drafting, graph_engine, plain_requests
from tests.engine.mixed_requests import ROOMY, alone, outcome_of, run_all

SHAPE = "C"
METHODS = (DraftMethod.EAGLE3, DraftMethod.MTP)


def knowing(method: DraftMethod) -> Knowing:
    inner = draft_model(method, SHAPE)
    assert inner is not None
    return Knowing(inner, SHAPE, lambda position, token: (3 * position + token) % 4 == 0)


def world_of(method: DraftMethod, max_drafts: int = 3, *, is_alone: bool = True, **changes: Any) -> GraphWorld:
    config = dataclasses.replace(drafting(ROOMY, method, max_drafts), **changes)
    return graph_engine(config, SHAPE, knowing(method), is_alone=is_alone)


def expected() -> dict[tuple[str, int], tuple[int, ...]]:
    return {key: tokens for key, (tokens, _) in alone(SHAPE).items()}


def bucketed() -> list[Request]:
    """Those of the mixed requests that buckets hold."""
    return plain_requests()[:-2]


@pytest.mark.parametrize("changes", [{}, {"adaptive_drafts": True}], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("max_drafts", [1, 2, 3, 5])
@pytest.mark.parametrize("method", METHODS)
def test_all_steps_are_on_their_way_and_no_token_changes(
    method: DraftMethod, max_drafts: int, changes: dict[str, Any]
) -> None:
    world = world_of(method, max_drafts, **changes)
    told = run_all(world.engine, bucketed())
    assert {key: tokens for key, (tokens, _) in told.items()}.items() <= expected().items()
    counts = world.engine.stats().drafts
    assert 0 < sum(counts.accepted) < sum(counts.drafted), "no round accepted some of its drafts"
    num_decodes = sum(bucket is not None for bucket in world.runner.ran)
    assert world.runner.runner.num_ahead >= num_decodes - 1 > 1, "the first decode alone is launched when it is planned"
