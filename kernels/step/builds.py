"""What every model's steps launch: block sizes differ, and the vocabulary of what drafts."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.builds import Build
from kernels.step.draft_kernel import OPTIONS as DRAFT_OPTIONS
from kernels.step.draft_kernel import ROWS_OPTIONS, draft_constants, draft_kernel, draft_rows_kernel
from kernels.step.draft_kernel import rows_constants as draft_rows_constants
from kernels.step.triton_kernel import AT_ONCE, OPTIONS, accept_kernel, rows_behind_kernel, rows_constants

_BEFORE = {"accepted": "*i32", "coming": "*i64"}
_COUNTS = {"num_rows": "i32", "num_sequences": "i32"}


_VOCABULARIES = {"eagle3": (32_000, True), "mtp": (157_184, False)}  # AntAngelMed's, which its head has a part of


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
    for block_size in (16, 64):
        yield Build(
            name=f"step draft rows, blocks of {block_size}",
            kernel=draft_rows_kernel,
            arguments={
                **{"reached": "*i32", "num_drafts": "*i32", "num_proposals": "*i32", "block_tables": "*i32"},
                **{"positions": "*i32", "slots": "*i32", "is_live": "*i1", "context_lens": "*i32"},
                **{"row_starts": "*i32", "num_sequences": "i32", "table_width": "i32", "scratch_slot": "i32"},
            },
            constants=draft_rows_constants(block_size),
            options=ROWS_OPTIONS,
        )
    for model, (vocab_size, has_table) in _VOCABULARIES.items():
        for is_first in (True, False):
            yield Build(
                name=f"step {'first' if is_first else 'further'} drafts, {model}",
                kernel=draft_kernel,
                arguments={
                    **{"logits": "*fp32", "target_ids": "*i64", "before_positions": "*i32", "last": "*i64"},
                    **{"block_bests": "*fp32", "block_ids": "*i32", "arrivals": "*i32", "token_ids": "*i64"},
                    **{"positions": "*i32", "num_drafts": "*i32", "drafts": "*i64", "coming": "*i64"},
                    **{"num_sequences": "i32", "num_places": "i32"},
                },
                constants=draft_constants(vocab_size, has_table, is_first),
                options=DRAFT_OPTIONS,
            )
