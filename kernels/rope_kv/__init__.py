"""QK-norm, partial rotary embedding and the write into the paged KV cache, fused.

Bytes: one read of QKV, one write of Q and of the new keys and values; FLOP: about 10 * T * (A + A_kv) * D.
"""

from __future__ import annotations

import torch

from kernels import native
from kernels.paged_attention import KVLayer
from kernels.rope_kv import cpu, reference

MAX_HEAD_DIM = 512  # a row's key is rotated on the native kernel's stack


def qk_norm_rope_kv(
    qkv: torch.Tensor,
    query_weight: torch.Tensor | None,
    key_weight: torch.Tensor | None,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    kv: KVLayer,
    eps: float,
) -> torch.Tensor:
    """Normalise and rotate each query and key head, write keys and values to `slots`, return q [T, A, D].

    qkv [T, (A + 2 * A_kv) * D], all Q then all K then all V; query_weight, key_weight [D], or None where heads are not
    normalised; cos_sin [P, R] fp32, the cosines of a position and then its sines, YaRN's factor included; positions,
    slots [T] int32. The first R channels rotate in halves (i, i + R / 2), the rest pass. fp32 inside, rounded after
    the norm and after the rotation. An FP8 cache takes them over its heads' scales, +-448 at most.
    Source: model-spec §2.4. T = 0 is valid.
    """
    head_dim = kv.head_dim
    assert qkv.dim() == 2 and qkv.is_contiguous(), f"qkv is {list(qkv.shape)}, strides {qkv.stride()}"
    assert qkv.shape[1] % head_dim == 0 and head_dim <= MAX_HEAD_DIM, f"qkv is {list(qkv.shape)}, heads of {head_dim}"
    assert kv.key_scale is not None or qkv.dtype == kv.value.dtype, f"qkv is {qkv.dtype}, cache {kv.value.dtype}"
    assert all(w is None or w.dtype == qkv.dtype for w in (query_weight, key_weight)), "norm weights of another dtype"
    assert cos_sin.dtype == torch.float32 and cos_sin.is_contiguous(), f"cos_sin is {cos_sin.dtype}"
    if kv.is_native:
        run = cpu.qk_norm_rope_kv
    elif native.runs_triton(qkv):
        from kernels.rope_kv import triton_kernel  # Triton is imported where it runs

        run = triton_kernel.qk_norm_rope_kv
    else:
        run = reference.qk_norm_rope_kv
    return run(qkv, query_weight, key_weight, cos_sin, positions, slots, kv, eps)
