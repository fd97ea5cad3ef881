"""One launch before each pass of the draft model, and one behind its logits.

Bytes: 4 * V a sequence, 128 KB of 32,000 tokens, 629 KB of AntAngelMed's: a launch and two loads behind one another,
some 3 us; before the pass 25 bytes a sequence. FLOP: 3 * V a sequence.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from kernels.arrivals import is_last
from kernels.launch import launch_options, loads_first
from kernels.launched import launched
from kernels.overlap import await_previous
from kernels.step.values import Drafted, DraftRows, StepBefore

AT_ONCE = 32  # sequences of a program: a warp's
BLOCK = 4096  # tokens of a program
ROWS_OPTIONS = launch_options(num_warps=1)
OPTIONS = loads_first(launch_options(num_warps=4))


@launched
@triton.jit(do_not_specialize=["num_sequences", "table_width", "scratch_slot"])
def draft_rows_kernel(
    reached: tl.tensor,
    num_drafts: tl.tensor,
    num_proposals: tl.tensor,
    block_tables: tl.tensor,
    positions: tl.tensor,
    slots: tl.tensor,
    is_live: tl.tensor,
    context_lens: tl.tensor,
    row_starts: tl.tensor,
    num_sequences: tl.tensor,
    table_width: tl.tensor,
    scratch_slot: tl.tensor,
    BLOCK_SIZE: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """AT_ONCE sequences, whose next positions are `reached`."""
    await_previous()
    number = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    exists = number < num_sequences
    position = tl.load(reached + number, mask=exists, other=0)
    proposed = tl.load(num_drafts + number, mask=exists, other=0)
    wants = proposed < tl.load(num_proposals + number, mask=exists, other=0)
    position = tl.where(wants, position, 0)
    block = tl.load(block_tables + number * table_width + position // BLOCK_SIZE, mask=exists, other=0)
    tl.store(positions + number, position, mask=exists)
    tl.store(slots + number, tl.where(wants, block * BLOCK_SIZE + position % BLOCK_SIZE, scratch_slot), mask=exists)
    tl.store(is_live + number, wants, mask=exists)
    tl.store(context_lens + number, position + 1, mask=exists)
    tl.store(row_starts + number, number, mask=number <= num_sequences)


@launched
@triton.jit(do_not_specialize=["num_sequences", "num_places"])
def draft_kernel(
    logits: tl.tensor,
    target_ids: tl.tensor,
    before_positions: tl.tensor,
    last: tl.tensor,
    block_bests: tl.tensor,
    block_ids: tl.tensor,
    arrivals: tl.tensor,
    token_ids: tl.tensor,
    positions: tl.tensor,
    num_drafts: tl.tensor,
    drafts: tl.tensor,
    coming: tl.tensor,
    num_sequences: tl.tensor,
    num_places: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    BLOCKS_POW2: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    IS_FIRST: tl.constexpr,
) -> None:
    """A block of a sequence's logits; the program of a sequence that ends last knows its draft. Grid (B, NUM_BLOCKS).

    IS_FIRST: it lies behind row `last` [B] of `before_positions`, else it is one more.
    """
    await_previous()
    number, block = tl.program_id(0), tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(logits + number.to(tl.int64) * VOCAB + ids, mask=ids < VOCAB, other=float("-inf"))
    # Also before the logits are there; nobody writes them while a program of the sequence has not ended.
    if IS_FIRST:
        position = tl.load(before_positions + tl.load(last + number))
        proposed = 0
    else:
        position = tl.load(positions + number)
        proposed = tl.load(num_drafts + number)
    best = tl.max(value, 0)  # where NaN, none equals it, and the last token is found
    places = number * NUM_BLOCKS
    tl.store(block_bests + places + block, best)
    tl.store(block_ids + places + block, tl.min(tl.where(value == best, ids, VOCAB - 1), 0))
    if is_last(arrivals + number, NUM_BLOCKS):
        blocks = tl.arange(0, BLOCKS_POW2)
        exists = blocks < NUM_BLOCKS
        # From the L2 cache: they were written a moment ago.
        bests = tl.load(block_bests + places + blocks, mask=exists, other=float("-inf"), cache_modifier=".cg")
        found = tl.load(block_ids + places + blocks, mask=exists, other=VOCAB - 1, cache_modifier=".cg")
        token = tl.min(tl.where(bests == tl.max(bests, 0), found, VOCAB - 1), 0).to(tl.int64)
        if HAS_TABLE:
            token = tl.load(target_ids + token)
        tl.store(token_ids + number, token)
        tl.store(positions + number, position + 1)
        tl.store(num_drafts + number, proposed + 1)
        tl.store(drafts + proposed * num_sequences + number, token)
        tl.store(coming + proposed * num_places + number, token)
        tl.store(arrivals + number, 0)


def draft_rows(
    drafted: Drafted, num_proposals: torch.Tensor, block_tables: torch.Tensor, block_size: int, scratch_slot: int
) -> DraftRows:
    """See `kernels.step.draft_rows`."""
    num_sequences, table_width = block_tables.shape
    device = num_proposals.device
    rows = DraftRows(
        positions=torch.empty_like(num_proposals),
        slots=torch.empty_like(num_proposals),
        is_live=torch.empty(num_sequences, dtype=torch.bool, device=device),
        context_lens=torch.empty_like(num_proposals),
        row_starts=torch.empty(num_sequences + 1, dtype=torch.int32, device=device),
    )
    draft_rows_kernel[(triton.cdiv(num_sequences + 1, AT_ONCE),)](
        *(drafted.positions, drafted.num_drafts, num_proposals, block_tables),
        *(rows.positions, rows.slots, rows.is_live, rows.context_lens, rows.row_starts),
        *(num_sequences, table_width, scratch_slot),
        **rows_constants(block_size),
        **ROWS_OPTIONS,
    )
    return rows


def first_drafts(
    logits: torch.Tensor,
    target_ids: torch.Tensor | None,
    positions: torch.Tensor,
    last: torch.Tensor,
    before: StepBefore,
    drafts: torch.Tensor,
) -> Drafted:
    """See `kernels.step.first_drafts`."""
    drafted = Drafted(
        token_ids=torch.empty_like(last),
        positions=positions.new_empty(len(last)),
        num_drafts=positions.new_empty(len(last)),
    )
    _draft(logits, target_ids, (positions, last), drafted, before, drafts)
    return drafted


def further_drafts(
    logits: torch.Tensor,
    target_ids: torch.Tensor | None,
    drafted: Drafted,
    before: StepBefore,
    drafts: torch.Tensor,
) -> None:
    """See `kernels.step.further_drafts`."""
    _draft(logits, target_ids, None, drafted, before, drafts)


def _draft(
    logits: torch.Tensor,
    target_ids: torch.Tensor | None,
    behind: tuple[torch.Tensor, torch.Tensor] | None,
    drafted: Drafted,
    before: StepBefore,
    drafts: torch.Tensor,
) -> None:
    """`behind`: positions of a step's rows, and which of them first drafts lie behind."""
    num_sequences, vocab_size = logits.shape
    constants = draft_constants(vocab_size, target_ids is not None, behind is not None)
    num_blocks = constants["NUM_BLOCKS"]
    positions, last = (drafted.positions, drafted.token_ids) if behind is None else behind
    draft_kernel[(num_sequences, num_blocks)](
        *(logits, drafted.token_ids if target_ids is None else target_ids, positions, last),
        *(logits.new_empty(num_sequences, num_blocks), positions.new_empty(num_sequences, num_blocks)),
        *(before.arrivals, drafted.token_ids, drafted.positions, drafted.num_drafts, drafts, before.coming),
        *(num_sequences, before.num_places),
        **constants,
        **OPTIONS,
    )


def rows_constants(block_size: int) -> dict[str, int]:
    """What `draft_rows_kernel` is compiled with."""
    return {"BLOCK_SIZE": block_size, "AT_ONCE": AT_ONCE}


@cache
def draft_constants(vocab_size: int, has_table: bool, is_first: bool) -> dict[str, int | bool]:
    """What `draft_kernel` is compiled with."""
    num_blocks = triton.cdiv(vocab_size, BLOCK)
    return {
        **{"VOCAB": vocab_size, "BLOCK": BLOCK, "NUM_BLOCKS": num_blocks},
        **{"BLOCKS_POW2": triton.next_power_of_2(num_blocks), "HAS_TABLE": has_table, "IS_FIRST": is_first},
    }
