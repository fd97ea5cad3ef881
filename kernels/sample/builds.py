"""The draw from AntAngelMed's vocabulary (Ling's, one for all sizes)."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.sample.draw import draw_kernel
from kernels.sample.gather import gather_kernel
from kernels.sample.triton_kernel import DRAW_OPTIONS, OPTIONS, draw_constants
from kernels.sample.weigh import best_kernel, weigh_kernel

_VOCAB_SIZE = 157184
_SETTINGS = {"temperature": "*fp32", "top_k": "*i64", "top_p": "*fp64", "min_p": "*fp32", "points": "*fp64"}
_BLOCKS = {"block_bests": "*fp32", "block_totals": "*i64"}
_PARTS = {"parts": "*i32", "part_counts": "*i32", "part_masses": "*i64"}
_HISTOGRAMS = {"histograms": "*i32", "state": "*i32"}
_SHARE = {"token_ids": "*i64", "blocks_each": "i32"}


def builds() -> Iterator[Build]:
    """Logits are fp32."""
    of = draw_constants(_VOCAB_SIZE)
    yield Build(
        name="sample best, 157184",
        kernel=best_kernel,
        arguments={"logits": "*fp32", "block_bests": "*fp32", "block_ids": "*i32", **_HISTOGRAMS, "blocks_each": "i32"},
        constants=of["best"],
        options=OPTIONS,
    )
    yield Build(
        name="sample weigh, 157184",
        kernel=weigh_kernel,
        arguments={
            **{"logits": "*fp32", **_SETTINGS, **_BLOCKS, "block_ids": "*i32", **_HISTOGRAMS, **_PARTS},
            **{"bests": "*fp32", **_SHARE},
        },
        constants=of["weigh"],
        options=OPTIONS,
    )
    yield Build(
        name="sample gather, 157184",
        kernel=gather_kernel,
        arguments={
            **{"logits": "*fp32", "temperature": "*fp32", "bests": "*fp32", "block_bests": "*fp32", "state": "*i32"},
            **{"candidates": "*i64", **_PARTS, "blocks_each": "i32"},
        },
        constants=of["gather"],
        options=OPTIONS,
    )
    yield Build(
        name="sample draw, 157184",
        kernel=draw_kernel,
        arguments={
            **{"logits": "*fp32", **_SETTINGS, "bests": "*fp32", **_BLOCKS, "state": "*i32", "candidates": "*i64"},
            **{**_PARTS, "order": "*i32", **_SHARE},
        },
        constants=of["draw"],
        options=DRAW_OPTIONS,
    )
