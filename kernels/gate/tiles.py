"""How the gate's logits are cut into programs. Pure, so that it can be tested and every choice compiled in advance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from kernels.launch import launch_options, loads_first

FEW_ROWS = 4  # at most, for which fp32 multiplication is faster than to lay operands out for the tensor cores
DECODE_ROWS = 128  # at most, where reading the weights takes longest
INVARIANT_ROWS = 64  # of the batch-invariant tile


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTile:
    """A program adds up 1 / `splits` of the channels of BLOCK_EXPERTS x BLOCK_ROWS logits, BLOCK_WIDTH at a time."""

    block_rows: int
    block_experts: int
    block_width: int
    splits: int  # at most: a split is a whole number of BLOCK_WIDTH channels
    num_warps: int
    num_stages: int = 1

    @property
    def has_few_rows(self) -> bool:
        """Whether rows are multiplied one after the other and all channels of a split at once."""
        return self.block_rows <= FEW_ROWS

    @property
    def options(self) -> dict[str, int | bool]:
        """How the kernel is launched."""
        return loads_first(launch_options(self.num_warps, self.num_stages))

    def split_width(self, width: int) -> int:
        """Channels of a split."""
        return -(-width // (self.splits * self.block_width)) * self.block_width

    def num_splits(self, width: int) -> int:
        """Splits of so many channels."""
        return -(-width // self.split_width(width))


@cache
def gate_tile(num_rows: int, itemsize: int) -> GateTile:
    """The tile for `num_rows` rows of hidden states, of `itemsize` bytes an element: 2 if bf16, else 4.

    H200 has 132 SMs. A decode of E * H = 256 * 4096 is 128 programs, each of which loads its 32 kB of weights at once:
    8 experts and 4 splits for few rows, a warp an expert; else 64 experts, which wgmma wants, and 32 splits. A prefill
    of bf16 is 128 x 128 logits a program and half the splits for twice the rows, 128 programs again.
    """
    if num_rows <= FEW_ROWS:
        rows = 1 << (num_rows - 1).bit_length()
        return GateTile(block_rows=rows, block_experts=8, block_width=512 // itemsize, splits=4, num_warps=8)
    if itemsize == 4:
        rows = 16 if num_rows <= 64 else 64
        return GateTile(block_rows=rows, block_experts=32, block_width=32, splits=16, num_warps=4)
    if num_rows <= DECODE_ROWS:
        rows = max(16, 1 << (num_rows - 1).bit_length())
        return GateTile(block_rows=rows, block_experts=64, block_width=128, splits=32, num_warps=4)
    doublings = (-(-num_rows // 128) - 1).bit_length()
    splits = min(16, max(1, 64 >> doublings))
    return GateTile(block_rows=128, block_experts=128, block_width=64, splits=splits, num_warps=8, num_stages=3)


@cache
def invariant_tile(itemsize: int) -> GateTile:
    """The one tile of batch-invariant mode: eight splits, so that the partial sums of a long prompt stay small."""
    if itemsize == 4:
        return GateTile(block_rows=16, block_experts=32, block_width=32, splits=8, num_warps=4)
    rows = INVARIANT_ROWS
    return GateTile(block_rows=rows, block_experts=64, block_width=64, splits=8, num_warps=4, num_stages=4)
