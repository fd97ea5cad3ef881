"""Draw a token per row: temperature, top-k, top-p, min-p, softmax, inverse distribution function.

Bytes: a few reads of R * V fp32, from cache after the first where they fit; FLOP: about 30 * R * V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels import native
from kernels.sample import cpu, reference

# Keeps the quotient of the best token (0) a number; far below what fp32 can tell from greedy.
MIN_TEMPERATURE = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawSettings:
    """How each row's token is drawn, all [R] on the device of the logits. Any value is valid; odd ones are clamped."""

    temperature: torch.Tensor  # fp32, positive
    top_k: torch.Tensor  # int64, 0 keeps the whole vocabulary
    top_p: torch.Tensor  # fp64, 1 keeps everything; the likeliest token always stays
    min_p: torch.Tensor  # fp32, of the best token's probability
    points: torch.Tensor  # fp64 in [0, 1)


def draw_tokens(logits: torch.Tensor, settings: DrawSettings) -> torch.Tensor:
    """Draw one token id per row of logits [R, V] fp32, contiguous, each row's maximum finite; returns [R] int64.

    Of a row whose maximum is not finite the id means nothing, but is one.
    A row that top-k or top-p limits runs its distribution function from the likeliest token down (ties by id), any
    other over the ids. The first token whose cumulated mass exceeds point * total is drawn, never one without mass.
    A row's token does not depend on the other rows. Masses fp32, sums fp64. R = 0 is valid.
    """
    if native.runs_triton(logits):
        from kernels.sample import triton_kernel  # Triton is imported where it runs

        _check(logits, settings)
        return triton_kernel.draw_tokens(logits, settings)
    clamped = _clamped(logits, settings)
    if logits.device.type != "cpu" or native.library() is None:
        return reference.draw_tokens(logits, clamped)
    return cpu.draw_tokens(logits, clamped)


def choose_tokens(logits: torch.Tensor, settings: DrawSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """A token id [R] int64 per row of logits [R, V] fp32, contiguous, and the highest logit of each row [R] fp32.

    Temperature 0 takes the highest logit, ties to the lower id; with any other `draw_tokens` draws. Of a row whose
    highest logit is not finite the id means nothing, but is one. The host need not know who draws. R = 0 is valid.
    """
    if native.runs_triton(logits):
        from kernels.sample import triton_kernel

        _check(logits, settings)
        return triton_kernel.choose_tokens(logits, settings)
    best, greedy = logits.max(dim=-1)
    is_drawn = (settings.temperature > 0.0) & best.isfinite()
    drawn = draw_tokens(logits.masked_fill(~is_drawn[:, None], 0.0), settings)
    return torch.where(is_drawn, drawn, greedy), best


def draw_probabilities(logits: torch.Tensor, settings: DrawSettings) -> torch.Tensor:
    """What `draw_tokens` draws from, whatever the points: probabilities by id [R, V] fp64, each row's sum 1.

    Only verification by rejection sampling needs them, so there is one implementation, which sorts: R * V * log V.
    """
    return reference.probabilities(logits, _clamped(logits, settings))


def draw_from(probabilities: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """One id [R] int64 per row of probabilities [R, V] fp64, by points [R] fp64 in [0, 1).

    A row's scale does not matter, but it must not be all 0. An id without mass is never drawn. Of a row with numbers
    that are not finite the id means nothing, but is one.
    """
    return reference.invert(probabilities, points)


def _clamped(logits: torch.Tensor, settings: DrawSettings) -> DrawSettings:
    """Settings that every implementation may take literally."""
    _check(logits, settings)
    vocab_size = logits.shape[1]
    return DrawSettings(
        temperature=settings.temperature.clamp_min(MIN_TEMPERATURE),
        top_k=torch.where(settings.top_k > 0, settings.top_k.clamp_max(vocab_size), vocab_size),
        top_p=settings.top_p.clamp(0.0, 1.0),
        min_p=settings.min_p.clamp(0.0, 1.0),
        points=settings.points,
    )


def _check(logits: torch.Tensor, settings: DrawSettings) -> None:
    num_rows = len(logits)
    assert logits.dtype == torch.float32 and logits.is_contiguous(), f"logits are {logits.dtype}, {logits.stride()}"
    assert settings.points.shape == (num_rows,), f"{list(settings.points.shape)} points for {num_rows} rows"
