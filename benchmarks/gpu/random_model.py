"""A model of random FP8 weights, made on the device: no checkpoint, and no copy in the host's memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from kernels.linear import reads_fp8
from kernels.quantise.formats import Scaling
from model.bailing import BailingModel
from model.checkpoint import Target, build_model
from model.config import ModelConfig
from model.dequantise import dequantise
from model.eagle3 import Eagle3Head, build_eagle3
from model.eagle3_config import Eagle3Config
from model.eagle3_shapes import OPTIONAL, expected_shapes
from model.linear import Linear
from model.quantization import BlockFp8
from model.tensors import TensorKind, TensorSpec, expected_tensors, is_fp8
from router.dispatch import Dispatcher
from router.placement import Placement

_SPREAD = 64.0  # of e4m3 values, whose largest is 448
_BIAS_SPREAD = 0.02  # of experts, a tenth of their scores': trained biases balance the load, large ones concentrate it


class RandomWeights:
    """A weight source that draws instead of reading; matrices keep the size of a row."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self._config = config
        self._dtype = dtype
        self._device = device
        self._draw = torch.Generator(device).manual_seed(seed)
        self._specs = {spec.name: spec for spec in expected_tensors(config)}

    def plain(self, name: str) -> torch.Tensor:
        """Norms about one; matrices that keep a row's size; what would be FP8 comes from its FP8 values."""
        spec = self._specs[name]
        if is_fp8(spec, self._config):
            return dequantise(*self.fp8(name), self._dtype)
        return self._plain(spec, self._dtype)

    def scaling(self, names: Collection[str]) -> Scaling:
        """As a checkpoint of this configuration has it."""
        is_kept = bool(names) and all(is_fp8(self._specs[name], self._config) for name in names)
        if not is_kept or not reads_fp8(self._device):
            return Scaling.NONE
        return Scaling.BLOCKS if isinstance(self._config.quantization, BlockFp8) else Scaling.CHANNELS

    def fp8(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Values over the range of e4m3, and scales that differ by up to three."""
        num_out, num_in = self._specs[name].shape
        assert self._config.quantization is not None, f"{name}: no quantization_config"
        values = self._normal((num_out, num_in), torch.bfloat16).mul_(_SPREAD).clamp_(-448, 448)
        scale = torch.rand(
            self._config.quantization.scale_shape(num_out, num_in), generator=self._draw, device=self._device
        )
        return values.to(torch.float8_e4m3fn), (0.5 + scale) * num_in**-0.5 / _SPREAD

    def fp32(self, name: str) -> torch.Tensor:
        """The router's weights."""
        return self._plain(self._specs[name], torch.float32)

    def order(self, names: Sequence[str]) -> Sequence[int]:
        """As they are given: each is drawn when it is asked for."""
        return range(len(names))

    def _plain(self, spec: TensorSpec, dtype: torch.dtype) -> torch.Tensor:
        noise = self._normal(spec.shape, dtype)
        if spec.kind is TensorKind.NORM:
            return 1 + 0.2 * noise
        if spec.kind is TensorKind.BIAS:
            return noise.mul_(_BIAS_SPREAD)
        return noise if spec.kind is TensorKind.EMBEDDING else noise.mul_(spec.shape[-1] ** -0.5)

    def _normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=self._draw, device=self._device, dtype=dtype)


def random_model(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, dispatcher: Dispatcher, seed: int
) -> BailingModel:
    """All experts on this device."""
    target = Target(dtype=dtype, device=device, placement=Placement.even(config.num_experts, 1), rank=0)
    return build_model(RandomWeights(config, dtype, device, seed), config, target=target, dispatcher=dispatcher)


def random_head(model: BailingModel, fields: dict[str, Any], dtype: torch.dtype, seed: int) -> Eagle3Head:
    """An EAGLE3 head of this config.json over the model's embedding: drafts of no use that cost what they cost."""
    config = Eagle3Config.from_dict(fields, model.config)
    device = model.embedding.device
    draw = torch.Generator(device).manual_seed(seed)
    shapes = expected_shapes(config, model.config)
    weights = {
        name: torch.randn(shape, generator=draw, device=device, dtype=dtype).mul_(shape[-1] ** -0.5)
        for name, shape in shapes.items()
        if name not in OPTIONAL
    }
    target_ids = torch.randperm(model.config.vocab_size, generator=draw, device=device)[: config.draft_vocab_size]
    lm_head = Linear.pack(weights["lm_head.weight"])
    return build_eagle3(config, model.config, weights, model.embedding, lm_head, target_ids.sort().values)


def cut(fields: dict[str, Any], num_layers: int) -> ModelConfig:
    """The configuration with only its first layers."""
    return ModelConfig.from_dict(fields | {"num_hidden_layers": num_layers})


def layers_that_fit(fields: dict[str, Any], dtype: torch.dtype, free_bytes: int, kv_tokens: int) -> int:
    """How many layers find room with `kv_tokens` of context; all of them, or as many as `free_bytes` hold."""
    whole = ModelConfig.from_dict(fields)
    kv_bytes = 2 * whole.num_key_value_heads * whole.head_dim * dtype.itemsize * kv_tokens
    for num_layers in range(whole.num_hidden_layers, whole.first_k_dense_replace, -1):
        if sum(weight_sizes(cut(fields, num_layers), dtype).values()) + num_layers * kv_bytes <= free_bytes:
            return num_layers
    raise MemoryError(f"{free_bytes / 1e9:.1f} GB hold no {whole.first_k_dense_replace + 1} layers of this model")


def weight_sizes(config: ModelConfig, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of the weights by who reads them: "experts" by routing, "embedding" row by row, "shared" every step."""
    sizes = {"experts": 0, "embedding": 0, "shared": 0}
    for spec in expected_tensors(config):
        kind = "embedding" if spec.kind is TensorKind.EMBEDDING else "shared" if spec.expert is None else "experts"
        sizes[kind] += tensor_bytes(spec, config, dtype)
    return sizes


def tensor_bytes(spec: TensorSpec, config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one weight as it lies on the device."""
    count = 1
    for size in spec.shape:
        count *= size
    if is_fp8(spec, config) and config.quantization is not None:
        rows, columns = config.quantization.scale_shape(spec.shape[0], spec.shape[1])
        return count + 4 * rows * columns
    return count * (4 if spec.kind in (TensorKind.ROUTER, TensorKind.BIAS) else dtype.itemsize)
