"""The heads of AntAngelMed (Ling-flash), Ling-mini and the EAGLE3 head, over bf16 and FP8 caches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.builds import Build
from kernels.paged_attention import allocate_kv_layer
from kernels.rope_kv.triton_kernel import OPTIONS, constants, qk_norm_rope_kv_kernel

_HEADS = {"flash": (32, 4, 64, True), "mini": (16, 4, 64, True), "eagle3": (32, 8, 128, False)}
_POINTERS = ("qkv", "query_weight", "key_weight", "query")
_BLOCK_SIZE, _HEAD_DIM = 64, 128


def builds() -> Iterator[Build]:
    """Query heads, KV heads, rotated channels and whether heads are normalised, by model."""
    for model, (heads, kv_heads, rotary, is_normed) in _HEADS.items():
        for cache, kind in ((torch.bfloat16, "*bf16"), (torch.float8_e4m3fn, "*fp8e4nv")):
            kv = allocate_kv_layer(0, _BLOCK_SIZE, kv_heads, _HEAD_DIM, cache, torch.device("meta"))
            yield Build(
                name=f"rope_kv, {model}, {kind[1:]} cache",
                kernel=qk_norm_rope_kv_kernel,
                arguments={
                    **dict.fromkeys(_POINTERS, "*bf16"),
                    **{"cos_sin": "*fp32", "positions": "*i32", "slots": "*i32"},
                    **{"key_cache": kind, "value_cache": kind, "key_scale": "*fp32", "value_scale": "*fp32"},
                    "eps": "fp32",
                },
                constants=constants(heads + 2 * kv_heads, kv, rotary, (is_normed, is_normed)),
                options=OPTIONS,
            )
