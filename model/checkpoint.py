"""From a checkpoint folder to a model: only what this rank holds is read, each weight packed as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from experts.layout import ExpertShape
from experts.shard import ExpertShard
from kernels.gate import GateShape
from kernels.linear import pack_weight, reads_fp8
from kernels.quantise.formats import Scaling
from model.attention import Attention
from model.bailing import BailingModel
from model.config import ModelConfig
from model.dequantise import dequantise
from model.heads import LmHead, MtpHead
from model.layer import DecoderLayer
from model.linear import Linear
from model.moe import DenseFfn, MoeLayer
from model.norm import RmsNorm
from model.quantization import BlockFp8
from model.read_ahead import ReadAhead, landing_for, plan_for
from model.rope import cos_sin_table
from model.safetensors_files import SafetensorsFiles
from model.side_stream import SideStream
from model.tensor_check import needed_tensors, parts_of
from model.weight_source import WeightSource, own
from router.dispatch import Dispatcher
from router.gate import Gate
from router.placement import Placement

Progress = Callable[[int, int], None]  # bytes read so far, bytes to read


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the weights are loaded for."""

    dtype: torch.dtype  # of activations and weights: fp32 or bf16
    device: torch.device
    placement: Placement
    rank: int

    @property
    def local_experts(self) -> tuple[int, ...]:
        """Logical ids of the experts held here, in storage order."""
        return self.placement.local_experts(self.rank)


def load_model(
    path: str | Path,
    config: ModelConfig,
    *,
    target: Target,
    dispatcher: Dispatcher,
    on_progress: Progress | None = None,
) -> BailingModel:
    """Load one rank's model. Raises CheckpointError that names the file, tensor or field at fault."""
    if target.placement.num_experts != config.num_experts:
        raise ValueError(f"placement of {target.placement.num_experts} experts, the model has {config.num_experts}")
    with SafetensorsFiles(path) as files:
        names = needed_tensors(files.tensors, config, target.local_experts)
        plan = plan_for(target.device)
        with ReadAhead(files, names, landing_for(target.device, plan), plan) as tensors:
            weights = WeightReader(tensors, config, target, on_progress)
            return build_model(weights, config, target=target, dispatcher=dispatcher)


def build_model(weights: WeightSource, config: ModelConfig, *, target: Target, dispatcher: Dispatcher) -> BailingModel:
    """Put one rank's model together, asking for each weight once."""
    return _Builder(weights, config, target, dispatcher).model()


class WeightReader:
    """Single tensors in the dtype that the model computes in, with progress."""

    def __init__(
        self, tensors: ReadAhead, config: ModelConfig, target: Target, on_progress: Progress | None = None
    ) -> None:
        self._tensors = tensors
        self._config = config
        self._target = target
        self._on_progress = on_progress
        self._done_bytes = 0

    def plain(self, name: str) -> torch.Tensor:
        """A weight in the activation dtype, dequantised where it is stored as FP8."""
        parts = [self._read(part) for part in self._parts(name)]
        dtype = self._target.dtype
        return dequantise(parts[0], parts[1], dtype) if len(parts) == 2 else parts[0].to(dtype)

    def scaling(self, names: Collection[str]) -> Scaling:
        """The FP8 format that these weights are kept in; none where one is not FP8, or no kernel here multiplies it."""
        is_fp8 = all(len(self._parts(name)) == 2 for name in names)
        quantization = self._config.quantization
        if quantization is None or not names or not is_fp8 or not reads_fp8(self._target.device):
            return Scaling.NONE
        return Scaling.BLOCKS if isinstance(quantization, BlockFp8) else Scaling.CHANNELS

    def fp8(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """An FP8 weight as it is stored, and its scales."""
        weight, scale = (self._read(part) for part in self._parts(name))
        return weight, scale

    def fp32(self, name: str) -> torch.Tensor:
        """A weight that stays fp32 whatever the activations are."""
        return self._read(name).float()

    def order(self, names: Sequence[str]) -> Sequence[int]:
        """The indices of names as they are read."""
        return sorted(range(len(names)), key=lambda index: self._tensors.turn[names[index]])

    def _parts(self, name: str) -> tuple[str, ...]:
        return parts_of(name, self._tensors.stored, self._config)

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._tensors.take(name)
        self._done_bytes += tensor.nbytes
        if self._on_progress is not None:
            self._on_progress(self._done_bytes, self._tensors.total_bytes)
        return tensor


class _Builder:
    """Puts the layers together under the names of model-spec §3."""

    def __init__(self, weights: WeightSource, config: ModelConfig, target: Target, dispatcher: Dispatcher) -> None:
        self._weights = weights
        self._config = config
        self._target = target
        self._dispatcher = dispatcher
        self._beside = SideStream(target.device)
        self._cos_sin = cos_sin_table(config.rope, config.max_context, target.device)

    def model(self) -> BailingModel:
        config = self._config
        embedding = self._kept("model.word_embeddings.weight")
        layers = tuple(
            self._layer(f"model.layers.{index}", is_moe=index >= config.first_k_dense_replace)
            for index in range(config.num_hidden_layers)
        )
        head = embedding if config.tie_word_embeddings else self._weights.plain("lm_head.weight")
        lm_head = LmHead(Linear.pack(head))
        return BailingModel(
            config=config,
            embedding=embedding,
            layers=layers,
            final_norm=self._norm("model.norm"),
            lm_head=lm_head,
            mtp=self._mtp(embedding, lm_head) if config.num_nextn_predict_layers else None,
        )

    def _mtp(self, embedding: torch.Tensor, lm_head: LmHead) -> MtpHead:
        prefix = f"model.layers.{self._config.num_hidden_layers}"
        layer = self._layer(prefix, is_moe=True)  # first, as its tensors are read: see needed_tensors
        return MtpHead(
            lm_head=lm_head,
            num_kv_heads=self._config.num_key_value_heads,
            head_dim=self._config.head_dim,
            embedding=embedding,
            embedding_norm=self._norm(f"{prefix}.enorm"),
            hidden_norm=self._norm(f"{prefix}.hnorm"),
            projection=self._linear(f"{prefix}.eh_proj"),
            layer=layer,
            final_norm=self._norm(f"{prefix}.final_layernorm"),
        )

    def _layer(self, prefix: str, *, is_moe: bool) -> DecoderLayer:
        return DecoderLayer(
            input_norm=self._norm(f"{prefix}.input_layernorm"),
            attention=self._attention(f"{prefix}.attention"),
            post_attention_norm=self._norm(f"{prefix}.post_attention_layernorm"),
            ffn=self._moe(f"{prefix}.mlp") if is_moe else self._ffn(f"{prefix}.mlp", self._config.intermediate_size),
        )

    def _attention(self, prefix: str) -> Attention:
        return Attention(
            query_key_value=self._linear(f"{prefix}.query_key_value"),
            query_norm=self._kept(f"{prefix}.query_layernorm.weight"),
            key_norm=self._kept(f"{prefix}.key_layernorm.weight"),
            dense=self._linear(f"{prefix}.dense"),
            cos_sin=self._cos_sin,
            scale=self._config.head_dim**-0.5,
            eps=self._config.rms_norm_eps,
        )

    def _moe(self, prefix: str) -> MoeLayer:
        config, local = self._config, self._target.local_experts
        return MoeLayer(
            gate=self._gate(f"{prefix}.gate"),
            dispatcher=self._dispatcher,
            shard=self._shard([f"{prefix}.experts.{expert}" for expert in local], config.moe_intermediate_size),
            shared=self._ffn(f"{prefix}.shared_experts", config.shared_expert_size),
            beside=self._beside,
        )

    def _gate(self, prefix: str) -> Gate:
        config = self._config
        weight = self._weights.fp32(f"{prefix}.weight")
        has_bias = config.moe_router_enable_expert_bias
        bias = own(self._weights.fp32(f"{prefix}.expert_bias")) if has_bias else weight.new_zeros(config.num_experts)
        shape = GateShape(
            num_expert_groups=config.n_group,
            topk_groups=config.topk_group,
            top_k=config.num_experts_per_tok,
            scale=config.routed_scaling_factor,
            normalise=config.norm_topk_prob,
        )
        return Gate(pack_weight(weight), bias, shape)

    def _ffn(self, prefix: str, width: int) -> DenseFfn:
        return DenseFfn(self._shard([prefix], width))

    def _shard(self, prefixes: list[str], width: int) -> ExpertShard:
        weights, dtype, device = self._weights, self._target.dtype, self._target.device
        names = [[f"{prefix}.{name}_proj.weight" for name in ("gate", "up", "down")] for prefix in prefixes]
        shape = ExpertShape(hidden_size=self._config.hidden_size, width=width)
        order = weights.order([gate for gate, _, _ in names])
        scaling = weights.scaling(list(chain(*names)))
        if scaling is Scaling.NONE:
            shard = ExpertShard.allocate(len(names), shape, dtype, device)
            for index in order:
                gate, up, down = names[index]
                shard.fill(index, weights.plain(gate), weights.plain(up), weights.plain(down))
            return shard
        shard = ExpertShard.allocate_fp8(len(names), shape, dtype, scaling, device)
        for index in order:
            values, scales = zip(*map(weights.fp8, names[index]), strict=True)
            shard.fill_fp8(index, values, scales)
        return shard

    def _linear(self, name: str) -> Linear:
        weight = f"{name}.weight"
        if self._weights.scaling([weight]) is Scaling.NONE:
            return Linear.pack(self._weights.plain(weight))
        value, scale = self._weights.fp8(weight)
        return Linear.pack_fp8(own(value), own(scale), self._target.dtype)

    def _norm(self, name: str) -> RmsNorm:
        return RmsNorm(self._kept(f"{name}.weight"), self._config.rms_norm_eps)

    def _kept(self, name: str) -> torch.Tensor:
        return own(self._weights.plain(name))
