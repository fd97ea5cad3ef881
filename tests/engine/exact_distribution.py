"""What an output must be distributed as: every stage of sampling by its formula in fp64, over the reference model.

Shares nothing with the engine: logits come from tests/oracle/reference.py, the stages are written out below, one row
and one token at a time. Order of the stages: speculative-decoding §3.2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from safetensors.torch import load_file

from model.config import ModelConfig
from scheduler.request import SamplingParams
from tests.engine.checkpoints import tiny_checkpoint
from tests.oracle.reference import ReferenceModel


@functools.cache
def logits_after(shape: str, token_ids: tuple[int, ...]) -> torch.Tensor:
    """[V] fp64 behind the last of the tokens."""
    return _reference(shape).forward(list(token_ids)).logits[-1]


def chances(logits: torch.Tensor, prompt: Sequence[int], output: Sequence[int], how: SamplingParams) -> list[float]:
    """The chance of each token of the vocabulary to be the next one."""
    values = logits.tolist()
    for token in {*prompt, *output}:
        values[token] *= 1 / how.repetition_penalty if values[token] > 0 else how.repetition_penalty
    for token in set(output):
        values[token] -= how.presence_penalty + how.frequency_penalty * list(output).count(token)
    for token, bias in how.logit_bias:
        values[token] += bias
    best = max(values)
    masses = [math.exp((value - best) / how.temperature) for value in values]
    ranked = sorted(range(len(masses)), key=lambda token: (-masses[token], token))
    kept = ranked[: how.top_k or len(ranked)]
    if how.top_p < 1.0:
        total, so_far = sum(masses[token] for token in kept), 0.0
        nucleus: list[int] = []
        for token in kept:
            if nucleus and so_far >= how.top_p * total:
                break
            nucleus.append(token)
            so_far += masses[token]
        kept = nucleus
    left = {token: masses[token] for token in kept if masses[token] >= how.min_p * masses[ranked[0]]}
    total = sum(left.values())
    return [left.get(token, 0.0) / total for token in range(len(masses))]


def joint_chances(
    shape: str, prompt: tuple[int, ...], length: int, how: SamplingParams, least: float = 1e-12
) -> dict[tuple[int, ...], float]:
    """The chance of every beginning of so many tokens; those below `least` are left out."""
    beginnings: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        beginnings = {
            (*output, token): chance * next_chance
            for output, chance in beginnings.items()
            for token, next_chance in enumerate(chances(logits_after(shape, prompt + output), prompt, output, how))
            if chance * next_chance >= least
        }
    return beginnings


@functools.cache
def _reference(shape: str) -> ReferenceModel:
    folder = tiny_checkpoint(shape)
    tensors = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    return ReferenceModel(ModelConfig.from_dir(folder), tensors)
