"""The stages before temperature: penalties, logit bias, forbidden tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitEdits:
    """What one row's logits go through before temperature. The defaults change nothing."""

    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output only
    frequency_penalty: float = 0.0  # over output only
    logit_bias: tuple[tuple[int, float], ...] = ()
    forbidden_token_ids: tuple[int, ...] = ()
    history: Sequence[int] = ()  # prompt + output so far; needed by the penalties alone
    num_prompt_tokens: int = 0


def edit_logits(logits: torch.Tensor, edits: Sequence[LogitEdits | None]) -> tuple[torch.Tensor, dict[int, str]]:
    """Apply each row's edits: repetition, presence and frequency penalty, bias, then forbidden tokens to -inf.

    logits [S, V] fp32 is left alone; returns the edited copy (or `logits` itself where no row has edits) and, by
    row, what was wrong with the rows that cannot be edited. Token ids in `history` must lie within the vocabulary.
    """
    chosen = [(row, edit) for row, edit in enumerate(edits) if edit is not None]
    if not chosen:
        return logits, {}
    edited = logits.clone()
    flat, vocab_size = edited.view(-1), logits.shape[-1]
    _repeat(flat, vocab_size, [(r, e) for r, e in chosen if e.repetition_penalty != 1.0])
    _discourage(flat, vocab_size, [(r, e) for r, e in chosen if e.presence_penalty or e.frequency_penalty])
    errors: dict[int, str] = {}
    for row, edit in chosen:
        if edit.logit_bias:
            error = _add_bias(edited[row], edit.logit_bias)
            if error:
                errors[row] = error
        if edit.forbidden_token_ids:
            # An id outside the vocabulary cannot be chosen anyway.
            edited[row, [i for i in edit.forbidden_token_ids if 0 <= i < vocab_size]] = -torch.inf
    return edited, errors


def _repeat(flat: torch.Tensor, vocab_size: int, edits: list[tuple[int, LogitEdits]]) -> None:
    """Divide positive and multiply negative logits of every token in the history by the row's penalty."""
    if not edits:
        return
    # A token that comes twice is read twice before it is written twice: the same value.
    keys = _token_keys(vocab_size, [(row, edit.history) for row, edit in edits])
    penalty = _per_key(keys, vocab_size, {row: edit.repetition_penalty for row, edit in edits})
    where, factor = torch.from_numpy(keys).to(flat.device), torch.from_numpy(penalty).to(flat.device)
    values = flat[where]
    flat[where] = torch.where(values > 0, values / factor, values * factor)


def _discourage(flat: torch.Tensor, vocab_size: int, edits: list[tuple[int, LogitEdits]]) -> None:
    """Subtract presence + frequency * count for every token in the output."""
    if not edits:
        return
    outputs = [(row, edit.history[edit.num_prompt_tokens :]) for row, edit in edits]
    keys, counts = np.unique(_token_keys(vocab_size, outputs), return_counts=True)
    presence = _per_key(keys, vocab_size, {row: edit.presence_penalty for row, edit in edits})
    frequency = _per_key(keys, vocab_size, {row: edit.frequency_penalty for row, edit in edits})
    loss = torch.from_numpy(presence + frequency * counts.astype(np.float32)).to(flat.device)
    flat[torch.from_numpy(keys).to(flat.device)] -= loss


def _add_bias(row_logits: torch.Tensor, bias: tuple[tuple[int, float], ...]) -> str:
    """Add the bias to one row [V]; equal ids add up. Returns what was wrong, or nothing."""
    vocab_size = row_logits.shape[0]
    for token_id, _ in bias:
        if not 0 <= token_id < vocab_size:
            return f"logit_bias: token id {token_id} is outside the vocabulary of {vocab_size}"
    ids = torch.tensor([token_id for token_id, _ in bias], device=row_logits.device)
    values = torch.tensor([value for _, value in bias], dtype=torch.float32, device=row_logits.device)
    row_logits.index_add_(0, ids, values)
    return ""


def _token_keys(vocab_size: int, tokens: Sequence[tuple[int, Sequence[int]]]) -> IntArray:
    """Positions of all tokens in the flattened logits: row * V + token id, int64."""
    parts = [np.asarray(ids, dtype=np.int64) + row * vocab_size for row, ids in tokens]
    return np.concatenate(parts)


def _per_key(keys: IntArray, vocab_size: int, value_of_row: dict[int, float]) -> npt.NDArray[np.float32]:
    """The value of the row that each key lies in, fp32."""
    table = np.zeros(max(value_of_row) + 1, dtype=np.float32)
    for row, value in value_of_row.items():
        table[row] = value
    values: npt.NDArray[np.float32] = table[keys // vocab_size]
    return values
