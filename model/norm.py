"""RMSNorm and its weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.linear import Fp8Rows
from kernels.permute import Answers
from kernels.quantise.formats import Scaling
from kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_both, rms_norm_quantised


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """w · cast(x · rsqrt(mean(x²) + eps)), statistics in fp32 (model-spec §2.2)."""

    weight: torch.Tensor  # [H], activation dtype
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [T, H]."""
        return rms_norm(x, self.weight, self.eps)

    def after_add(self, residual: torch.Tensor, x: torch.Tensor | Answers) -> torch.Tensor:
        """Add x into `residual` in place, both [T, H], and return the normalised sum."""
        return add_rms_norm(residual, x, self.weight, self.eps)

    def after_add_and_quantised(
        self, residual: torch.Tensor, x: torch.Tensor, scaling: Scaling
    ) -> tuple[torch.Tensor, Fp8Rows | None]:
        """As `after_add`, and what a product of this format reads of it, where that is something else."""
        if scaling is Scaling.NONE:
            return self.after_add(residual, x), None
        normed, *quantised = rms_norm_both(residual, x, self.weight, self.eps, scaling)
        return normed, Fp8Rows(*quantised)

    def quantised(
        self, x: torch.Tensor | Answers, scaling: Scaling, residual: torch.Tensor | None = None
    ) -> torch.Tensor | Fp8Rows:
        """What a product of this format reads of the norm of x, after adding x into `residual`, if given."""
        if scaling is Scaling.NONE and residual is not None:
            return self.after_add(residual, x)
        if scaling is Scaling.NONE:
            assert isinstance(x, torch.Tensor), "answers are added to a residual stream"
            return self(x)
        return Fp8Rows(*rms_norm_quantised(x, self.weight, self.eps, scaling, residual))
