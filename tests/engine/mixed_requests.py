"""Requests of every kind and what they yield each by itself: the yardstick of invariant 1 (fp32, CPU, tiny models)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import torch

import kernels.native
from engine.engine import Engine
from engine.model_runner import ModelRunner
from model.bailing import BailingModel
from model.checkpoint import Target, load_model
from model.config import ModelConfig
from model.kv_cache import KVCache
from router.local import LocalDispatcher
from router.placement import Placement
from scheduler.request import Request, SamplingParams, TokenDelta
from scheduler.scheduler import Scheduler, SchedulerConfig
from tests.engine.checkpoints import tiny_checkpoint

CPU = torch.device("cpu")
ROOMY = SchedulerConfig(
    num_blocks=256, block_size=16, max_rows_per_step=512, max_sequences=16, max_context=128, prefix_cache=False
)
Outcome = dict[tuple[str, int], tuple[tuple[int, ...], tuple[float, ...]]]  # tokens and log-probabilities


@functools.cache
def tiny(shape: str) -> BailingModel:
    folder = tiny_checkpoint(shape)
    config = ModelConfig.from_dir(folder)
    target = Target(dtype=torch.float32, device=CPU, placement=Placement.even(config.num_experts, 1), rank=0)
    return load_model(folder, config, target=target, dispatcher=LocalDispatcher(config.num_experts))


def make_engine(config: SchedulerConfig, shape: str = "B", kv_dtype: torch.dtype = torch.float32) -> Engine:
    model = tiny(shape)
    kv = KVCache(model.config, config.num_blocks, config.block_size, kv_dtype, CPU)
    return Engine(Scheduler(config, lambda: 0.0), ModelRunner(model, kv, CPU))


def mixed_requests() -> list[Request]:
    """Prompts of many lengths, some with a common beginning; greedy and drawn, with and without penalties."""
    shared = tuple(range(40, 64))
    base = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True, num_logprobs=1)
    penalised = dataclasses.replace(base, repetition_penalty=1.2, presence_penalty=0.3, frequency_penalty=0.1)
    drawn = dataclasses.replace(base, temperature=0.9, seed=3)
    narrow = dataclasses.replace(drawn, seed=4, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.05)
    return [
        Request(request_id="one token", prompt=(7,), sampling=base),
        Request(request_id="short", prompt=(5, 6, 7), sampling=drawn),
        Request(request_id="shared a", prompt=(*shared, 1, 2, 3), sampling=penalised),
        Request(request_id="shared b", prompt=(*shared, 9), sampling=narrow),
        Request(request_id="shared alone", prompt=shared, sampling=base),
        Request(request_id="long", prompt=tuple(n * 7 % 512 for n in range(61)), sampling=base, num_sequences=2),
        Request(request_id="n", prompt=tuple(range(300, 317)), sampling=drawn, num_sequences=3),
    ]


def outcome_of(deltas: Iterable[TokenDelta]) -> Outcome:
    tokens: dict[tuple[str, int], list[int]] = {}
    logprobs: dict[tuple[str, int], list[float]] = {}
    for delta in deltas:
        key = (delta.request_id, delta.sequence_index)
        tokens.setdefault(key, []).extend(delta.token_ids)
        logprobs.setdefault(key, []).extend(score.logprob for score in delta.logprobs)
    # The torch kernels are exact enough for equal tokens, the native ones are equal to the last bit.
    is_exact = kernels.native.backend() != "torch"
    return {key: (tuple(tokens[key]), tuple(logprobs[key]) if is_exact else ()) for key in tokens}


def run_all(engine: Engine, requests: list[Request]) -> Outcome:
    deltas: list[TokenDelta] = []
    for request in requests:
        engine.add(request)
    while engine.has_work:
        deltas += engine.step()
    return outcome_of(deltas)


@functools.cache
def alone(shape: str = "B", kv_dtype: torch.dtype = torch.float32) -> Outcome:
    """Every request by itself, each in a fresh engine that has room for everything."""
    outcome: Outcome = {}
    for request in mixed_requests():
        outcome |= run_all(make_engine(ROOMY, shape, kv_dtype), [request])
    return outcome
