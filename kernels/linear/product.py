"""The matrix product inside a tile, which every matrix kernel shares.

A tile is summed in one of two ways. ROWS_LEFT: rows x outputs, for prefill, where a row's scale costs one register.
Otherwise outputs x rows, for decode: the outputs fill the 64 lines that wgmma wants, and the few rows are its narrow
side. Both operands lie along K, as FP8 demands.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.overlap import IS_COMPILED


@triton.jit
def _along_rows(values: tl.tensor, ROWS_LEFT: tl.constexpr) -> tl.tensor:
    """A vector over rows, or over K beside weights, as an axis of the tile."""
    if ROWS_LEFT:
        return values[:, None]
    else:
        return values[None, :]


@triton.jit
def _along_outs(values: tl.tensor, ROWS_LEFT: tl.constexpr) -> tl.tensor:
    """A vector over outputs, or over K beside rows, as the other axis of the tile."""
    if ROWS_LEFT:
        return values[None, :]
    else:
        return values[:, None]


@triton.jit
def _accumulate(
    acc: tl.tensor,
    x: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    SCALING: tl.constexpr,
    ROWS_LEFT: tl.constexpr,
) -> tl.tensor:
    """Acc + x times weight over one step of K.

    The tensor core's own sums of FP8 products keep some 14 bits, so it makes them over 128 channels at most.
    """
    left, right = (x, weight) if ROWS_LEFT else (weight, x)
    if SCALING == "blocks":
        return acc + tl.dot(left, right, max_num_imprecise_acc=128) * scale
    elif SCALING == "channels":
        return tl.dot(left, right, acc, max_num_imprecise_acc=128)
    else:
        return tl.dot(left, right, acc, input_precision="ieee")


@triton.jit
def _load(at: tl.tensor, k: tl.tensor, NUM_IN: tl.constexpr, BLOCK_IN: tl.constexpr) -> tl.tensor:
    """A tile at pointers whose channels are `k`; channels past NUM_IN read as zero."""
    if NUM_IN % BLOCK_IN == 0:
        return tl.load(at)
    else:
        return tl.load(at, mask=k < NUM_IN, other=0.0)


@triton.jit
def tile_rows(first_row: tl.tensor, end: tl.tensor, BLOCK_ROWS: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The rows of a tile, and in their places rows before `end`, int64: what can be read."""
    row = first_row + tl.arange(0, BLOCK_ROWS)
    return row, tl.minimum(row, end - 1).to(tl.int64)


@triton.jit
def tile_places(
    row: tl.tensor,
    rows: tl.tensor,
    end: tl.tensor,
    first_out: tl.tensor,
    NUM_OUT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Where the outputs of a tile's rows lie in [., NUM_OUT], and which of them exist."""
    outs = first_out + tl.arange(0, BLOCK_OUT)
    return rows[:, None] * NUM_OUT + outs[None, :], (row < end)[:, None] & (outs < NUM_OUT)[None, :]


@triton.jit
def _ask(first_byte: tl.tensor, is_wanted: tl.tensor, NUM_BYTES: tl.constexpr) -> None:
    """Have NUM_BYTES at each of many addresses brought to the L2 cache, where wanted; 16 divides all.

    A warp's threads ask one after another, some 50 cycles each, so few of each warp should, for much.
    """
    tl.inline_asm_elementwise(
        "{ .reg .pred asks; setp.ne.s32 asks, $3, 0; @asks cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }",
        constraints="=r,l,r,r",
        args=[first_byte, NUM_BYTES, is_wanted.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch(
    weight: tl.tensor,
    first_out: tl.tensor,
    split: tl.tensor,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    NUM_THREADS: tl.constexpr,
    PAIR: tl.constexpr = False,
) -> None:
    """Have the weights of a tile's part of K brought to the L2 cache, all at once: of each output by one thread.

    It may come before `await_previous`, for it reads no value: whatever is written later is what a load finds. With
    PAIR a second weight follows, as in `product`. Weights begin at a multiple of 16 bytes.
    """
    if IS_COMPILED:
        PART: tl.constexpr = NUM_IN // NUM_SPLITS
        NUM_LINES: tl.constexpr = 2 * BLOCK_OUT if PAIR else BLOCK_OUT
        THREADS: tl.constexpr = NUM_THREADS // NUM_LINES  # of which one asks
        thread = tl.arange(0, NUM_THREADS)
        line = thread // THREADS
        outs = tl.minimum(first_out + line % BLOCK_OUT, NUM_OUT - 1) + line // BLOCK_OUT * NUM_OUT
        first_byte = (weight + outs * NUM_IN + split * PART).to(tl.int64)
        _ask(first_byte, thread % THREADS == 0, PART * weight.dtype.element_ty.primitive_bitwidth // 8)


@triton.jit
def prefetch_span(at: tl.tensor, is_wanted: tl.tensor, NUM_BYTES: tl.constexpr) -> None:
    """Have NUM_BYTES that follow one another brought to the L2 cache, as `prefetch` does. 512 divides them.

    Every eighth thread of 256 asks for one of 32 pieces, if wanted.
    """
    if IS_COMPILED:
        PIECES: tl.constexpr = 32
        thread = tl.arange(0, 8 * PIECES)
        first_byte = at.to(tl.int64) + thread // 8 * (NUM_BYTES // PIECES)
        _ask(first_byte, (thread % 8 == 0) & is_wanted, NUM_BYTES // PIECES)


@triton.jit
def product(
    x: tl.tensor,
    x_scale: tl.tensor,
    weight: tl.tensor,
    weight_scale: tl.tensor,
    rows: tl.tensor,
    first_out: tl.tensor,
    NUM_OUT: tl.constexpr,
    NUM_IN: tl.constexpr,
    PAIR: tl.constexpr,
    SCALING: tl.constexpr,
    ROWS_LEFT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    split: tl.tensor = 0,
    NUM_SPLITS: tl.constexpr = 1,
    next_weight: tl.tensor = 0,
    is_next_wanted: tl.tensor = False,
    NEXT_BYTES: tl.constexpr = 0,
) -> tuple[tl.tensor, tl.tensor]:
    """Outputs [first_out, first_out + BLOCK_OUT) of x [., NUM_IN] at `rows`, fp32 [BLOCK_ROWS, BLOCK_OUT].

    weight [NUM_OUT, NUM_IN]; with PAIR a second weight follows it, and its tile is the second result.
    SCALING "blocks": x_scale [., NUM_IN / 128], weight_scale [NUM_OUT / 128, NUM_IN / 128] of each weight; "channels":
    x_scale [.], weight_scale [NUM_OUT]; "none". `rows` int64 must exist; outputs past NUM_OUT are garbage.
    Of NUM_SPLITS equal parts of K only part `split` is summed; more than one must each be whole steps.
    When the last weights have been asked for, NEXT_BYTES of `next_weight` are brought to the L2 cache, if wanted.
    """
    NUM_SCALES: tl.constexpr = (NUM_IN + 127) // 128
    SECOND: tl.constexpr = NUM_OUT * NUM_IN
    SECOND_SCALE: tl.constexpr = (NUM_OUT + 127) // 128 * NUM_SCALES if SCALING == "blocks" else NUM_OUT
    NUM_STEPS: tl.constexpr = (NUM_IN + BLOCK_IN - 1) // BLOCK_IN // NUM_SPLITS
    LAST_LOADS: tl.constexpr = max(NUM_STEPS - 4, 0)  # with five stages, loads are four steps ahead
    first_in = split * (NUM_STEPS * BLOCK_IN)
    k = tl.arange(0, BLOCK_IN)
    outs = tl.minimum(first_out + tl.arange(0, BLOCK_OUT), NUM_OUT - 1)
    x_at = x + first_in + _along_rows(rows, ROWS_LEFT) * NUM_IN + _along_outs(k, ROWS_LEFT)
    weight_at = weight + first_in + _along_outs(outs, ROWS_LEFT) * NUM_IN + _along_rows(k, ROWS_LEFT)
    if ROWS_LEFT:
        first = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    else:
        first = tl.zeros((BLOCK_OUT, BLOCK_ROWS), tl.float32)
    second = first
    row_scale = tl.zeros((BLOCK_ROWS,), tl.float32)
    block_scale, second_scale = 0.0, 0.0
    x_scale_at = x_scale + split * NUM_STEPS + rows * NUM_SCALES
    weight_scale_at = weight_scale + split * NUM_STEPS + (first_out // 128) * NUM_SCALES
    if SCALING == "blocks":
        row_scale, block_scale = tl.load(x_scale_at), tl.load(weight_scale_at)
        if PAIR:
            second_scale = tl.load(weight_scale_at + SECOND_SCALE)
    for step in range(0, NUM_STEPS):
        if NEXT_BYTES > 0 and step == LAST_LOADS:  # after the loop memory would have been idle for a moment
            prefetch_span(next_weight, is_next_wanted, NEXT_BYTES)
        start = step * BLOCK_IN
        # Weights first: they need not wait for the load that tells where rows lie.
        weight_tile = _load(weight_at + start, start + _along_rows(k, ROWS_LEFT), NUM_IN, BLOCK_IN)
        if PAIR:
            second_tile = _load(weight_at + SECOND + start, start + _along_rows(k, ROWS_LEFT), NUM_IN, BLOCK_IN)
        x_tile = _load(x_at + start, start + _along_outs(k, ROWS_LEFT), NUM_IN, BLOCK_IN)
        row_scales = _along_rows(row_scale, ROWS_LEFT)
        first = _accumulate(first, x_tile, weight_tile, row_scales * block_scale, SCALING, ROWS_LEFT)
        if PAIR:
            second = _accumulate(second, x_tile, second_tile, row_scales * second_scale, SCALING, ROWS_LEFT)
        if SCALING == "blocks":  # one step ahead, so that no product waits for its scales
            block = tl.minimum(step + 1, NUM_STEPS - 1)
            row_scale, block_scale = tl.load(x_scale_at + block), tl.load(weight_scale_at + block)
            if PAIR:
                second_scale = tl.load(weight_scale_at + SECOND_SCALE + block)
    if SCALING == "channels":
        row_scales = _along_rows(tl.load(x_scale + rows), ROWS_LEFT)
        first = first * (row_scales * _along_outs(tl.load(weight_scale + outs), ROWS_LEFT))
        if PAIR:
            second = second * (row_scales * _along_outs(tl.load(weight_scale + NUM_OUT + outs), ROWS_LEFT))
    if ROWS_LEFT:
        return first, second
    else:
        return tl.trans(first), tl.trans(second)
