"""Bytes of drawn drafts and of their verification. No torch: a capacity plan needs them, too."""

from __future__ import annotations

VERIFIED_AT_ONCE = 32  # rows: more would hold that many more distributions over the vocabulary


def kept_bytes(num_sequences: int, num_drafts: int, draft_vocab_size: int) -> int:
    """Of the proposals of a round of each sequence, fp32."""
    return num_sequences * num_drafts * draft_vocab_size * 4


def verification_bytes(vocab_size: int) -> int:
    """Of the distributions of `VERIFIED_AT_ONCE` rows on their way from logits to tokens: eight values of fp64 each."""
    return VERIFIED_AT_ONCE * vocab_size * 8 * 8
