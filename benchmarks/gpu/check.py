"""One comparison of a kernel with fp64."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the inputs. `rows` is odd, so that no tile comes out even."""

    rows: int
    hidden: int
    inner: int
    num_experts: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """An error and what it may be; NaN is above every bound."""

    what: str
    error: float
    bound: float

    @classmethod
    def of(cls, what: str, ours: torch.Tensor, exact: torch.Tensor, bound: float) -> Check:
        """The largest difference over the largest magnitude."""
        assert ours.shape == exact.shape, f"{what}: {list(ours.shape)}, not {list(exact.shape)}"
        error = (ours.double() - exact.double()).abs().max() / exact.double().abs().max()
        return cls(what=what, error=float(error), bound=bound)

    @classmethod
    def equal(cls, what: str, ours: torch.Tensor, exact: torch.Tensor) -> Check:
        """The share of values that differ, which must be none."""
        assert ours.shape == exact.shape, f"{what}: {list(ours.shape)}, not {list(exact.shape)}"
        return cls(what=what, error=float((ours != exact).double().mean()), bound=0.0)
