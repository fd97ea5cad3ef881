"""Choosing tokens on a GPU without a word from the host: four launches, in each of which many programs share a row.

1. Each block's highest logit (weigh.py).
2. All masses; for a ranked row (top-k, top-p) a histogram of the distances below the best. Greedy rows and rows that
   no rank limits are done.
3. The candidates of a ranked row; what takes their place where they are more than MAX_CANDIDATES (gather.py).
4. The draw from them (draw.py, candidates.py, searches.py).

The program of a row that ends last does what one alone can; none waits for another. A row that a stage has nothing to
do for costs the start of its programs. A token does not depend on how many programs share its row (masses.py).

Bytes: R * V * 4 once from memory, then from L2 while R * V * 4 fits: one pass for a greedy row, two for one without
rank, two and the blocks that hold candidates for a ranked row, four on the long road and R * V * 4 of ids written.
FLOP: about 60 * R * V, half of it the histogram's. V = 157184: 629 KB a row, 0.16 us at 4.0 TB/s (H20 datasheet);
at few rows the launches and the last programs count.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton

from kernels.launch import launch_options
from kernels.sample import MIN_TEMPERATURE
from kernels.sample.draw import draw_kernel
from kernels.sample.gather import gather_kernel
from kernels.sample.masses import BINS, STATE
from kernels.sample.weigh import best_kernel, weigh_kernel

if TYPE_CHECKING:
    from kernels.sample import DrawSettings

MAX_CANDIDATES = 1024
FEW_CANDIDATES = 256  # for which the draw is four times cheaper
OTHERS, FEW_OTHERS = 8, 32  # candidates that all are compared with at once: 32 comparisons a thread
BLOCK = 2048  # tokens of the vocabulary at once
PROGRAMS = 1024  # that share all rows, about: eight for each multiprocessor
DRAW_PROGRAMS = 128
PIECES = 4  # of a block that sums of parts are made of one after another, for registers' sake
PARTS_AT_ONCE = 512  # whose sums move in one step
PART_TOKENS = 64  # of a bin's part, about
AT_ONCE = 512  # tokens of a part that are read at once
OPTIONS = launch_options(num_warps=8)
DRAW_OPTIONS = launch_options(num_warps=16)


def choose_tokens(logits: torch.Tensor, settings: DrawSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.sample.choose_tokens`. Settings need not be clamped."""
    num_rows, vocab_size = logits.shape
    device = logits.device
    bests = torch.empty(num_rows, device=device)
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    if not num_rows:
        return token_ids, bests
    of = draw_constants(vocab_size)
    num_blocks, num_parts = of["best"]["NUM_BLOCKS"], of["weigh"]["PARTS"]
    blocks_each = triton.cdiv(num_blocks * num_rows, PROGRAMS)
    grid = (num_rows, triton.cdiv(num_blocks, blocks_each))
    block_bests = torch.empty(num_rows, num_blocks, device=device)
    block_ids = torch.empty(num_rows, num_blocks, dtype=torch.int32, device=device)
    block_totals = torch.empty(num_rows, num_blocks, dtype=torch.int64, device=device)
    state = torch.empty(num_rows, STATE, dtype=torch.int32, device=device)
    histograms = torch.empty(num_rows, BINS, dtype=torch.int32, device=device)
    parts = torch.empty(num_rows, 2, BINS, dtype=torch.int32, device=device)
    part_counts = torch.empty(num_rows, num_parts, dtype=torch.int32, device=device)
    part_masses = torch.empty(num_rows, num_parts, dtype=torch.int64, device=device)
    candidates = torch.empty(num_rows, MAX_CANDIDATES, dtype=torch.int64, device=device)
    order = torch.empty(num_rows, vocab_size, dtype=torch.int32, device=device)
    own = (settings.temperature, settings.top_k, settings.top_p, settings.min_p, settings.points)
    best_kernel[grid](*(logits, block_bests, block_ids, state, histograms, blocks_each), **of["best"], **OPTIONS)
    weigh_kernel[grid](
        *(logits, *own, block_bests, block_ids, block_totals, histograms, state, parts, part_counts, part_masses),
        *(bests, token_ids, blocks_each),
        **of["weigh"],
        **OPTIONS,
    )
    gather_kernel[grid](
        *(logits, settings.temperature, bests, block_bests, state, candidates, parts, part_counts, part_masses),
        blocks_each,
        **of["gather"],
        **OPTIONS,
    )
    # As a rule one program of a row draws: its others would but wait for their turns to find that out.
    blocks_each = triton.cdiv(num_blocks * num_rows, DRAW_PROGRAMS)
    draw_kernel[(num_rows, triton.cdiv(num_blocks, blocks_each))](
        *(logits, *own, bests, block_bests, block_totals, state, candidates, parts, part_counts, part_masses, order),
        *(token_ids, blocks_each),
        **of["draw"],
        **DRAW_OPTIONS,
    )
    return token_ids, bests


def draw_tokens(logits: torch.Tensor, settings: DrawSettings) -> torch.Tensor:
    """Logits [R, V] fp32 -> ids [R] int64. Settings need not be clamped; one of temperature 0 draws, too."""
    warm = replace(settings, temperature=settings.temperature.clamp_min(MIN_TEMPERATURE))
    return choose_tokens(logits, warm)[0]


@cache
def draw_constants(vocab_size: int) -> dict[str, dict[str, int]]:
    """What the kernel of each stage is compiled with."""
    assert vocab_size < 1 << 20, f"{vocab_size} tokens: a key has twenty bits for the id"
    num_blocks = triton.cdiv(vocab_size, BLOCK)
    best = {"VOCAB": vocab_size, "BLOCK": BLOCK, "NUM_BLOCKS": num_blocks, "BINS": BINS, "STATE": STATE}
    # A bin has one part more than its tokens fill, and one part stands for what is too far.
    parts = triton.next_power_of_2(vocab_size // PART_TOKENS + BINS + 1)
    shared = {**best, "BLOCKS_POW2": triton.next_power_of_2(num_blocks), "PARTS": parts}
    others = {"FEW_CANDIDATES": FEW_CANDIDATES, "OTHERS": OTHERS, "FEW_OTHERS": FEW_OTHERS}
    sums = {"PARTS_AT_ONCE": min(parts, PARTS_AT_ONCE)}
    return {
        "best": best,
        "weigh": {**shared, "PART_TOKENS": PART_TOKENS, "MAX_CANDIDATES": MAX_CANDIDATES},
        "gather": {**best, "PARTS": parts, "MAX_CANDIDATES": MAX_CANDIDATES, "PIECES": PIECES, **sums},
        "draw": {**shared, "AT_ONCE": AT_ONCE, "MAX_CANDIDATES": MAX_CANDIDATES, **others},
    }
