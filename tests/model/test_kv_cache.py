from __future__ import annotations

import torch

from benchmarks.shapes import SHAPES
from model.config import ModelConfig
from model.kv_cache import KVCache, kv_bytes_per_block


def test_a_token_of_flash_takes_64_kib() -> None:
    flash = ModelConfig.from_dict(SHAPES["flash"])
    assert kv_bytes_per_block(flash, 16, torch.bfloat16) == 16 * 64 * 1024  # model-spec §1


def test_cache_takes_what_its_blocks_are_said_to_take() -> None:
    config = ModelConfig.from_dict(SHAPES["B"])
    for dtype in (torch.float32, torch.bfloat16):
        kv = KVCache(config, num_blocks=5, block_size=8, dtype=dtype, device=torch.device("cpu"))
        assert len(kv.layers) == config.num_hidden_layers
        assert kv.num_bytes == 5 * kv_bytes_per_block(config, 8, dtype)
