"""The paged KV cache of one rank: for each layer, blocks of `block_size` positions."""

from __future__ import annotations

import torch

from kernels.paged_attention import KVLayer, allocate_kv_layer
from model.config import ModelConfig


class KVCache:
    """Keys (after norm and rotation) and values of every layer. Who owns which block is the scheduler's business."""

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        heads, dim = config.num_key_value_heads, config.head_dim
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.layers: tuple[KVLayer, ...] = tuple(
            allocate_kv_layer(num_blocks, block_size, heads, dim, dtype, device)
            for _ in range(config.num_hidden_layers)
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(layer.key.nbytes + layer.value.nbytes for layer in self.layers)


def kv_bytes_per_block(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes that one block takes over all layers of `KVCache`."""
    values = 2 * config.num_key_value_heads * config.head_dim * block_size
    return values * config.num_hidden_layers * dtype.itemsize
