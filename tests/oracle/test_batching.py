"""The same logits whatever a row shares its step with: chunks, neighbours, scattered blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from model.bailing import BailingModel
from tests.oracle.comparison import assert_same, random_ids
from tests.oracle.tiny_models import TinyModel, block_table, kv_cache, ragged_batch, run_prompt

Tiny = Callable[[str], TinyModel]
LENGTH = 30


def in_chunks(model: BailingModel, ids: list[int], sizes: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    kv, table, logits, start = kv_cache(model, dtype=dtype), block_table(len(ids)), [], 0
    for size in sizes:
        batch = ragged_batch([(ids[start : start + size], start, table)])
        logits.append(model.forward(batch, kv).logits)
        start += size
    assert start == len(ids)
    return torch.cat(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[1] * LENGTH, [7, 1, 16, 6], [29, 1]], ids=["decode", "mixed", "last"])
def test_chunks_give_what_one_shot_gives(tiny: Tiny, sizes: list[int], dtype: torch.dtype) -> None:
    world = tiny("B")
    model, ids = world.load(dtype), random_ids(LENGTH, world.config.vocab_size)
    whole = run_prompt(model, ids, dtype).logits
    if dtype is torch.float32:
        assert_same(in_chunks(model, ids, sizes, dtype), whole, f"chunks {sizes}")
    else:
        torch.testing.assert_close(in_chunks(model, ids, sizes, dtype), whole, rtol=0, atol=0.1)


def test_neighbours_and_scattered_blocks_change_nothing(tiny: Tiny) -> None:
    world = tiny("G")
    model, vocab = world.load(), world.config.vocab_size
    prompts = [random_ids(length, vocab, seed) for seed, length in enumerate((13, 1, 22))]
    alone = [run_prompt(model, ids).logits for ids in prompts]
    tables = [[40, 3, 17, 9], [0], [5, 1, 30, 2, 29, 60]]
    together = model.forward(
        ragged_batch([(ids, 0, table) for ids, table in zip(prompts, tables, strict=True)]), kv_cache(model)
    ).logits
    for part, expected in zip(torch.split(together, [13, 1, 22]), alone, strict=True):
        assert_same(part, expected, "a sequence beside two others")


def test_prefill_beside_decode_changes_neither(tiny: Tiny) -> None:
    world = tiny("B")
    model, vocab = world.load(), world.config.vocab_size
    old, new = random_ids(18, vocab, 1), random_ids(11, vocab, 2)
    kv = kv_cache(model)
    model.forward(ragged_batch([(old[:17], 0, block_table(18))]), kv)
    mixed = model.forward(ragged_batch([(old[17:], 17, block_table(18)), (new, 0, block_table(11, 20))]), kv).logits
    assert_same(mixed[:1], run_prompt(model, old).logits[17:], "a decode beside a prefill")
    assert_same(mixed[1:], run_prompt(model, new).logits, "a prefill beside a decode")


def test_rejected_rows_are_overwritten(tiny: Tiny) -> None:
    """What a refused draft wrote beyond the context is never seen, and is replaced by the next write."""
    world = tiny("A")
    model, vocab = world.load(), world.config.vocab_size
    ids, wrong, kv, table = random_ids(12, vocab), random_ids(4, vocab, 9), kv_cache(model), block_table(12)
    model.forward(ragged_batch([(ids[:8] + wrong, 0, table)]), kv)
    logits = model.forward(ragged_batch([(ids[8:], 8, table)]), kv).logits
    assert_same(logits, run_prompt(model, ids).logits[8:], "rows after a rejected draft")


def test_empty_batch_is_valid(tiny: Tiny) -> None:
    model = tiny("A").load()
    assert model.forward(ragged_batch([]), kv_cache(model)).logits.shape == (0, 512)


def test_only_wanted_rows_get_logits(tiny: Tiny) -> None:
    model = tiny("A").load()
    batch = ragged_batch([(random_ids(6, 512), 0, block_table(6))])
    every = model.forward(batch, kv_cache(model)).logits
    last = model.forward(replace(batch, logit_rows=torch.tensor([2, 5])), kv_cache(model)).logits
    assert_same(last, every[[2, 5]], "two rows of six")
