"""How many bytes of weights a checkpoint holds, by what they are for: sums over names and shapes."""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass

from engine.config import Precision
from model.config import ModelConfig
from model.quantization import BlockFp8
from model.tensors import TensorKind, TensorSpec, expected_tensors, is_fp8

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3": 1}

_FP32_KINDS = (TensorKind.ROUTER, TensorKind.BIAS)  # in memory, as in engine.memory


class Part(enum.Enum):
    """What weights are for."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    DENSE_FFN = "dense FFN"
    ROUTERS = "routers"
    SHARED_EXPERTS = "shared experts"
    ROUTED_EXPERTS = "routed experts"
    NORMS = "norms"
    DRAFT = "EAGLE3 head"
    MTP = "MTP layer"  # all of it but its routed experts, which are placed as the others are


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Tensors and their sizes. Scales of FP8 weights count as bytes on disk, not as tensors or parameters."""

    num_tensors: int = 0
    num_parameters: int = 0
    stored_bytes: int = 0  # as the checkpoint holds them
    loaded_bytes: int = 0  # as they lie in memory: dequantised, in the precision chosen

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            num_tensors=self.num_tensors + other.num_tensors,
            num_parameters=self.num_parameters + other.num_parameters,
            stored_bytes=self.stored_bytes + other.stored_bytes,
            loaded_bytes=self.loaded_bytes + other.loaded_bytes,
        )

    def __mul__(self, times: int) -> Weights:
        return Weights(
            num_tensors=self.num_tensors * times,
            num_parameters=self.num_parameters * times,
            stored_bytes=self.stored_bytes * times,
            loaded_bytes=self.loaded_bytes * times,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Formats:
    """How weights are held: in memory, and on disk where config.json does not say."""

    precision: Precision
    channel_scale_itemsize: int = 4  # scales per channel are fp32, or 2: bf16; those per block are always fp32
    keeps_fp8: bool = False  # FP8 weights stay as they are, with their scales; else they are dequantised


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSums:
    """A model's weights, apart by who holds them."""

    replicated: dict[Part, Weights]  # on every rank
    expert: Weights  # one routed expert of one layer; all are alike
    num_expert_layers: int  # layers with routed experts, the MTP layer's included

    def on_rank(self, num_experts: int) -> dict[Part, Weights]:
        """By part, on a rank that holds so many experts of every layer."""
        held = self.replicated | {Part.ROUTED_EXPERTS: self.expert * (num_experts * self.num_expert_layers)}
        return {part: held[part] for part in Part if part in held}


def sum_weights(model: ModelConfig, formats: Formats) -> WeightSums:
    """Add up every tensor that a checkpoint of this shape has."""
    replicated: dict[Part, Weights] = {}
    for spec in expected_tensors(model):
        if spec.expert is None:
            part = _part(spec, model)
            replicated[part] = replicated.get(part, Weights()) + _weights(spec, model, formats)
    if model.tie_word_embeddings:
        # The head is laid out apart for reading; the checkpoint has no second copy.
        replicated[Part.HEAD] = Weights(loaded_bytes=replicated[Part.EMBEDDING].loaded_bytes)
    projections = [_weights(spec, model, formats) for spec in expected_tensors(model) if spec.expert == 0]
    return WeightSums(
        replicated=replicated,
        expert=sum(projections[:3], Weights()),  # gate, up, down of the first such layer
        num_expert_layers=len(projections) // 3,
    )


_PARTS = (
    (r"word_embeddings\.", Part.EMBEDDING),
    (r"^lm_head\.", Part.HEAD),
    (r"\.shared_experts\.", Part.SHARED_EXPERTS),
    (r"\.mlp\.gate\.", Part.ROUTERS),
    (r"norm\.weight$", Part.NORMS),
    (r"\.attention\.", Part.ATTENTION),
    (r"\.mlp\.", Part.DENSE_FFN),
)


def _part(spec: TensorSpec, model: ModelConfig) -> Part:
    if spec.name.startswith(f"model.layers.{model.num_hidden_layers}."):
        return Part.MTP
    return next(part for pattern, part in _PARTS if re.search(pattern, spec.name))


def _weights(spec: TensorSpec, model: ModelConfig, formats: Formats) -> Weights:
    count = math.prod(spec.shape)
    loaded = 4 if spec.kind in _FP32_KINDS else ITEMSIZE[formats.precision.value]
    stored_bytes = _stored_bytes(spec, model, formats)
    is_kept = formats.keeps_fp8 and is_fp8(spec, model)
    return Weights(
        num_tensors=1,
        num_parameters=count,
        stored_bytes=stored_bytes,
        loaded_bytes=stored_bytes if is_kept else count * loaded,
    )


def _stored_bytes(spec: TensorSpec, model: ModelConfig, formats: Formats) -> int:
    """On disk."""
    count = math.prod(spec.shape)
    if spec.kind is TensorKind.BIAS:
        return count * 4
    if model.quantization is None or not is_fp8(spec, model):
        return count * ITEMSIZE[model.torch_dtype]
    is_block = isinstance(model.quantization, BlockFp8)
    scale_itemsize = 4 if is_block else formats.channel_scale_itemsize
    return count + scale_itemsize * math.prod(model.quantization.scale_shape(*spec.shape))
