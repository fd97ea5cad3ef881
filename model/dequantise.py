"""FP8 weights back to what kernels read that know no FP8 (model-spec §4). `weight_scale_inv` multiplies, too."""

from __future__ import annotations

import torch

from model.quantization import FP8_BLOCK


def dequantise(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Multiply e4m3 weights [N, K] by their scales; computed in fp32, rounded once to `dtype`.

    scale [N, 1] holds one number per output channel, any other shape one per 128 x 128 block.
    """
    num_out, num_in = weight.shape
    factor = scale.float()
    if factor.shape != (num_out, 1):
        factor = factor.repeat_interleave(FP8_BLOCK, 0)[:num_out].repeat_interleave(FP8_BLOCK, 1)[:, :num_in]
    return (weight.float() * factor).to(dtype)
