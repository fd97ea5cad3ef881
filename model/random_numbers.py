"""Uniform numbers that depend on what they are for, not on when or beside whom they are drawn.

A counter-based generator: every output token of every sequence has its own number, so that batch mates, preemption,
chunking and restarts on another rank cannot change it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, splitmix64's step
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK_64 = (1 << 64) - 1

UInt64Array = npt.NDArray[np.uint64]


class Stream(enum.IntEnum):
    """Independent sequences of numbers under one seed. Fixed for ever: changing one changes users' outputs."""

    TOKEN = 0  # the token committed at an output index
    DRAFT = 1  # a draft for that index, where drafts are drawn
    ACCEPT = 2  # whether that draft is accepted; independent of the draft, or the verification is biased


def uniforms(
    seeds: Sequence[int],
    sequence_indices: Sequence[int],
    output_indices: Sequence[int],
    stream: Stream = Stream.TOKEN,
) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, sequence index, output index), 53 random bits, fp64 [R].

    Seeds are any integers and count modulo 2**64; the indices are not negative.
    Each field is absorbed by one round of splitmix64 (Steele, Lea, Flood 2014): state = mix(state ^ field + step).
    """
    state = np.full(len(seeds), int(stream), dtype=np.uint64)
    for field in (seeds, sequence_indices, output_indices):
        values = np.array([value & _MASK_64 for value in field], dtype=np.uint64)
        state = _mix((state ^ values) + _GOLDEN)
    # 53 bits: the largest is 1 - 2**-53, which fp64 holds exactly, so 1.0 never occurs.
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: UInt64Array) -> UInt64Array:
    """The finaliser of splitmix64: a bijection of 64 bits that avalanches. Array arithmetic wraps."""
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
