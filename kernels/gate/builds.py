"""The gates of AntAngelMed (Ling-flash) and Ling-mini."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.gate import GateShape
from kernels.gate.choice import CHOOSE_OPTIONS, choose_constants
from kernels.gate.logits import few_partial_logits_kernel, logits_constants, partial_logits_kernel
from kernels.gate.ordered_choice import ordered_choice_kernel, ordered_constants
from kernels.gate.tiles import DECODE_ROWS, FEW_ROWS, GateTile, gate_tile, invariant_tile
from kernels.gate.triton_kernel import choose_kernel
from kernels.linear.tiles import INVARIANT_ROWS
from kernels.permute.tiles import max_tiles

_SHAPE = GateShape(num_expert_groups=8, topk_groups=4, top_k=8, scale=2.5, normalise=True)
_EXPERTS = 256
_WIDTHS = {"flash": 4096, "mini": 2048}
_ROWS = (1, 2, FEW_ROWS, 16, 32, 64, DECODE_ROWS, 512, 1024, 2048, 4096, 8192)  # each of another tile


def builds() -> Iterator[Build]:
    """All kernels for both models; hidden states are bf16."""
    tiles = {f"{rows} rows": gate_tile(rows, itemsize=2) for rows in _ROWS} | {"batch-invariant": invariant_tile(2)}
    for model, width in _WIDTHS.items():
        for name, tile in tiles.items():
            yield _logits(f"gate logits, {model}, {name}", tile, width)
    for splits in sorted({tile.num_splits(width) for tile in tiles.values() for width in _WIDTHS.values()}):
        for has_live in (False, True):
            yield Build(
                name=f"gate choice of {splits} splits{', some live' if has_live else ''}",
                kernel=choose_kernel,
                arguments={
                    **{"partial": "*fp32", "bias": "*fp32", "is_live": "*i1" if has_live else "*i32"},
                    **{"ids": "*i32", "weights": "*fp32", "scale": "fp32", "num_rows": "i32"},
                },
                constants=choose_constants(splits, _EXPERTS, _SHAPE, has_live),
                options=CHOOSE_OPTIONS,
            )
    for name, tile, tile_rows in (
        ("", gate_tile(1, itemsize=2), 16),
        (", batch-invariant", invariant_tile(2), INVARIANT_ROWS),
    ):
        for has_live in (False, True):
            num_tiles = max_tiles(_SHAPE.top_k, _EXPERTS, tile_rows)
            yield Build(
                name=f"gate choice and order{name}{', some live' if has_live else ''}",
                kernel=ordered_choice_kernel,
                arguments={
                    **{"partial": "*fp32", "bias": "*fp32", "is_live": "*i1" if has_live else "*i32"},
                    **{"ids": "*i32", "weights": "*fp32", "counts": "*i32", "totals": "*i64"},
                    **{"places": "*i32", "sources": "*i32", "tiles": "*i32", "scale": "fp32"},
                },
                constants=ordered_constants(num_tiles, tile.num_splits(4096), _EXPERTS, _SHAPE, has_live),
                options=CHOOSE_OPTIONS,
            )


def _logits(name: str, tile: GateTile, width: int) -> Build:
    arguments = {"hidden": "*bf16", "weight": "*fp32", "partial": "*fp32", "num_rows": "i32"}
    constants = logits_constants(tile, _EXPERTS, width)
    if tile.has_few_rows:
        return Build(
            name=name,
            kernel=few_partial_logits_kernel,
            arguments=arguments,
            constants=constants,
            options=tile.options,
            reads_first=True,
        )
    return Build(
        name=name,
        kernel=partial_logits_kernel,
        arguments=arguments,
        constants=constants,
        options=tile.options,
        is_matrix=True,
    )
