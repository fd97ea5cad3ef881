"""From the configuration to a draft model with its part of the KV cache."""

from __future__ import annotations

import torch

from engine.config import EngineConfig
from engine.drafters.chain import ChainDrafter
from engine.drafters.draft_model import DraftModel
from engine.drafters.memory import DraftMemory
from engine.drafters.proposal_sizes import head_folder
from kernels.paged_attention import allocate_kv_layer
from model.bailing import BailingModel
from model.config import ModelConfig
from model.eagle3 import load_eagle3
from model.eagle3_config import Eagle3Config
from model.eagle3_shapes import num_parameters
from model.errors import ConfigError
from scheduler.request import DraftMethod


def draft_weight_bytes(config: EngineConfig, model: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of weights beside the model's own. Raises CheckpointError or ConfigError for a head that is not there."""
    if config.speculation.loaded is not DraftMethod.EAGLE3:
        return 0
    return num_parameters(Eagle3Config.from_dir(head_folder(config), model), model) * dtype.itemsize


def draft_context(config: EngineConfig, model: ModelConfig) -> int | None:
    """Positions that the draft model is meant for; None: all that the model is. Raises as `draft_weight_bytes` does."""
    if config.speculation.loaded is not DraftMethod.EAGLE3:
        return None
    return Eagle3Config.from_dir(head_folder(config), model).max_context


def load_draft_model(
    config: EngineConfig, model: BailingModel, dtype: torch.dtype, device: torch.device
) -> DraftModel | None:
    """The draft model that the configuration wants. Raises CheckpointError or ConfigError for what is not there."""
    method = config.speculation.loaded
    if method is DraftMethod.EAGLE3:
        return load_eagle3(
            head_folder(config), model.config, model.embedding, dtype, device, lm_head=model.lm_head.weight
        )
    if method is DraftMethod.MTP:
        if model.mtp is None:
            raise ConfigError("num_nextn_predict_layers", "0: this checkpoint has no MTP layer to draft with")
        return model.mtp
    return None


def kv_block_bytes(model: DraftModel, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block of its KV layer."""
    return 2 * model.num_kv_heads * model.head_dim * block_size * dtype.itemsize


def chain_drafter(
    model: DraftModel,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    memory: DraftMemory | None = None,
) -> ChainDrafter:
    """A drafter with a KV layer of as many blocks as the model's cache has. With a memory it draws its drafts."""
    kv = allocate_kv_layer(num_blocks, block_size, model.num_kv_heads, model.head_dim, dtype, device)
    return ChainDrafter(model, kv, block_size, device, memory)
