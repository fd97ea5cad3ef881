"""What every stage of the draw reads a token as: its mass, its key, its bin. The same bits in every kernel.

A mass is exp((x - best) / temperature) as an integer of 2^-40, so that sums are exact in whatever order and a row's
token depends on nothing but the row. A key orders tokens as (value, then lower id first). A bin is a distance below the
best; as a difference and a product round without changing an order, no token lies in a nearer bin than a likelier one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.sample import MIN_TEMPERATURE

COLDEST = tl.constexpr(MIN_TEMPERATURE)

# One row's words of `state` [R, STATE] int32, all 0 before the second kernel.
STATE = 8
WEIGHED = tl.constexpr(0)  # programs of the second kernel that are done
GATHERED = tl.constexpr(1)  # of the third
PLACED = tl.constexpr(2)  # of the fourth
FOUND = tl.constexpr(3)  # candidates
ROAD = tl.constexpr(4)  # DONE, FEW or MANY
BOUND = tl.constexpr(5)  # the farthest bin that may be drawn from
DONE, FEW, MANY = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

BINS = 128  # by which a row is narrowed: some 40 instructions a token for the histogram; 256 would be 60
# The finest parts of a bin: a float has 24 bits, the number of the bin takes 7.
PART_BITS = tl.constexpr(17)
FINEST = tl.constexpr(1 << 17)


@triton.jit
def block_tokens(x: tl.tensor, block: tl.tensor, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Ids of a block of a row and their logits, -inf behind the last."""
    ids = block * BLOCK + tl.arange(0, BLOCK)
    return ids, tl.load(x + ids, mask=ids < VOCAB, other=float("-inf"))


@triton.jit
def row_limits(
    row: tl.tensor, top_k: tl.tensor, top_p: tl.tensor, min_p: tl.tensor, VOCAB: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """A row's top_k in [1, VOCAB], top_p and min_p in [0, 1], whatever was asked for."""
    k = tl.load(top_k + row)
    k = tl.where(k > 0, tl.minimum(k, VOCAB), VOCAB)
    p = tl.minimum(tl.maximum(tl.load(top_p + row), 0.0), 1.0)
    return k, p, tl.minimum(tl.maximum(tl.load(min_p + row), 0.0), 1.0)


@triton.jit
def inverse_heat(heat: tl.tensor) -> tl.tensor:
    """What a distance is multiplied with. The best token's 0 stays a number."""
    return 1.0 / tl.maximum(heat, COLDEST)


@triton.jit
def mass_of(logits: tl.tensor, best: tl.tensor, inverse: tl.tensor, floor: tl.tensor) -> tl.tensor:
    """Masses as int64 units of 2^-40 of the best token's; none below the floor (min_p)."""
    # A maximum also takes the NaN of an infinite distance times a flushed inverse; e^-100 is no unit.
    mass = tl.exp(tl.maximum((logits - best) * inverse, -100.0))
    return tl.where(mass >= floor, mass * 1099511627776.0, 0.0).to(tl.int64)


@triton.jit
def key_of(logits: tl.tensor, ids: tl.tensor) -> tl.tensor:
    """Keys as int64, all different."""
    bits = (logits + 0.0).to(tl.int32, bitcast=True)  # -0 is 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 20) | (0xFFFFF - ids).to(tl.int64)


@triton.jit
def value_of(keys: tl.tensor) -> tl.tensor:
    """The logits in keys."""
    ordered = (keys >> 20).to(tl.int32)
    return tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)


@triton.jit
def id_of(keys: tl.tensor) -> tl.tensor:
    """The ids in keys."""
    return 0xFFFFF - (keys & 0xFFFFF).to(tl.int32)


@triton.jit
def part_of(logits: tl.tensor, best: tl.tensor, inverse: tl.tensor, BINS: tl.constexpr) -> tl.tensor:
    """Distances below the best in 1 / FINEST of a bin; the last bin begins at 28.5 temperatures, without a mass."""
    # No sum stands behind a product here: fused or not, every kernel gets the same bits. A NaN is as far as any.
    distance = tl.minimum((best - logits) * (inverse * ((BINS - 1) / 28.5)), BINS - 1.0)
    return (distance * FINEST).to(tl.int32)


@triton.jit
def divided(part: tl.tensor, parts: tl.tensor, BINS: tl.constexpr) -> tl.tensor:
    """Distances as of `part_of` -> which part of the row's; behind the bound the first that is nobody's."""
    bins = part >> PART_BITS
    first, number = tl.load(parts + bins), tl.load(parts + BINS + bins)
    within = ((part & (FINEST - 1)).to(tl.int64) * number.to(tl.int64)) >> PART_BITS
    return first + within.to(tl.int32)


@triton.jit
def target_of(point: tl.tensor, total: tl.tensor) -> tl.tensor:
    """The whole units that the distribution function must pass; fp64 may round the product up to the total."""
    return tl.minimum((point * total.to(tl.float64)).to(tl.int64), total - 1)
