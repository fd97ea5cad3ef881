"""What every model's steps launch: block sizes are all that differs."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.step.triton_kernel import AT_ONCE, OPTIONS, accept_kernel, rows_behind_kernel, rows_constants

_BEFORE = {"accepted": "*i32", "coming": "*i64"}
_COUNTS = {"num_rows": "i32", "num_sequences": "i32"}


def builds() -> Iterator[Build]:
    """Blocks of 16 and of 64."""
    for block_size in (16, 64):
        yield Build(
            name=f"step rows, blocks of {block_size}",
            kernel=rows_behind_kernel,
            arguments={
                **_BEFORE,
                **{"planned_ids": "*i64", "planned_positions": "*i32", "token_sources": "*i32", "row_places": "*i32"},
                **{"table_rows": "*i32", "point_rows": "*i32", "is_followed": "*i1", "planned_points": "*fp64"},
                **{"planned_lens": "*i32", "places": "*i32", "block_tables": "*i32", "num_live": "*i32"},
                **{"token_ids": "*i64", "positions": "*i32", "slots": "*i32", "draft_slots": "*i32"},
                **{"is_live": "*i1", "points": "*fp64", "context_lens": "*i32"},
                **{**_COUNTS, "scratch_slot": "i32"},
            },
            constants=rows_constants(block_size),
            options=OPTIONS,
        )
    yield Build(
        name="step accept",
        kernel=accept_kernel,
        arguments={
            **{"row_tokens": "*i64", "token_ids": "*i64", "best": "*fp32", "row_starts": "*i32"},
            **{"before_accepted": "*i32", "coming": "*i64"},
            **{"told_ids": "*i64", "told_best": "*fp32", "told_accepted": "*i32", "behind": "*i64"},
            **{**_COUNTS, "line": "i32"},
        },
        constants={"AT_ONCE": AT_ONCE},
        options=OPTIONS,
    )
