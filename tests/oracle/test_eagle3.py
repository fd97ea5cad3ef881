"""The EAGLE3 head against its formulas, in both layouts and with every switch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.batch import ModelOutput
from tests.oracle.comparison import assert_same, random_ids, relative_error
from tests.oracle.eagle3_heads import draft_kv, head_and_reference, load
from tests.oracle.tiny_models import BLOCK_SIZE, TinyModel, block_table, kv_cache, ragged_batch

Tiny = Callable[[str], TinyModel]
TOLERANCE = 1e-5  # relative, fp32

CHANGES: list[dict[str, Any]] = [
    {},
    {"norm_before_fc": True},
    {"fc_norm": True},
    {"norm_output": True},
    {"norm_before_residual": True},
    {"attention_bias": True},
    {"norm_before_fc": True, "norm_output": True, "norm_before_residual": True, "head_dim": 24},
    {"draft_vocab_size": None, "tie_word_embeddings": True, "rope_theta": 50000},
    {"sliding_window": 5, "layer_types": ["sliding_attention"]},
    {"partial_rotary_factor": 0.5, "num_key_value_heads": 4},
    {"hidden_size": 80, "fc_norm": True, "norm_output": True},
    {"num_key_value_heads": 1, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [-1, 0, 1, 2]}, "fc_norm": True},
]


def names(changes: dict[str, Any]) -> str:
    return "+".join(changes) or "plain"


@pytest.mark.parametrize("layout", ["flat", "nested"])
@pytest.mark.parametrize("changes", CHANGES, ids=names)
def test_a_head_follows_the_formulas_in_chunks_and_on_its_own_states(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], layout: str
) -> None:
    world = tiny("B")
    head, reference = head_and_reference(world, tmp_path, layout, **changes)
    model = world.load()
    ids = random_ids(22, world.config.vocab_size)
    output = model.forward(ragged_batch([(ids[:-1], 0, block_table(21))]), kv_cache(model), head.capture_layers)
    assert output.captured is not None
    expected = reference.fuse(output.captured)
    assert relative_error(head.first_states(output), expected) < TOLERANCE

    # Two chunks, then a further step from the head's own states, as a batch would run them.
    kv = draft_kv(head)
    states, shifted = head.first_states(output), ids[1:]
    parts = [
        head.forward(states[a:b].clone(), ragged_batch([(shifted[a:b], a, block_table(22))]), kv)
        for a, b in ((0, 9), (9, 21))
    ]
    first = reference.forward(expected, torch.tensor(shifted))
    assert relative_error(torch.cat(parts), first) < TOLERANCE
    assert relative_error(head.logits(parts[1]), reference.logits(first[9:])) < TOLERANCE
    drafted = 3
    second = head.forward(parts[1][-1:].clone(), ragged_batch([([drafted], 21, block_table(22))]), kv)
    longer = reference.forward(torch.cat([expected, first[-1:]]), torch.tensor([*shifted, drafted]))
    assert relative_error(second, longer[-1:]) < TOLERANCE


@pytest.mark.parametrize("changes", [{}, {"norm_output": True}, {"sliding_window": 6}], ids=names)
def test_chains_of_a_ragged_batch_are_those_of_each_sequence_alone(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any]
) -> None:
    world = tiny("B")
    head, reference = head_and_reference(world, tmp_path, **changes)
    lengths, tables = (1, 13, 7), [block_table(20, first_block) for first_block in (0, 8, 16)]
    shifted = [random_ids(length, world.config.vocab_size, seed=length) for length in lengths]
    fused = [torch.randn(length, world.config.hidden_size, generator=seeded(length)) for length in lengths]

    kv, drafts = draft_kv(head), [list[int]() for _ in lengths]
    rows = [(ids, 0, table) for ids, table in zip(shifted, tables, strict=True)]
    states = head.forward(torch.cat(fused), ragged_batch(rows), kv)
    states = states[torch.tensor(lengths).cumsum(0) - 1]
    for step in range(4):
        tokens = best(head.logits(states), head.target_ids)
        for chain, token in zip(drafts, tokens, strict=True):
            chain.append(token)
        rows = [([t], n + step, table) for t, n, table in zip(tokens, lengths, tables, strict=True)]
        states = head.forward(states, ragged_batch(rows), kv)

    for inputs, ids, drafted, last in zip(fused, shifted, drafts, states, strict=True):
        known, alone = list(ids), inputs
        result = reference.forward(alone, torch.tensor(known))
        for token in drafted:
            assert best(reference.logits(result[-1:]), head.target_ids) == [token]
            known.append(token)
            alone = torch.cat([alone, result[-1:]])
            result = reference.forward(alone, torch.tensor(known))
        assert relative_error(last, result[-1]) < TOLERANCE


def test_rows_of_drafts_leave_nothing_behind_once_overwritten(tiny: Tiny, tmp_path: Path) -> None:
    world = tiny("B")
    head, _ = head_and_reference(world, tmp_path)
    states = torch.randn(12, world.config.hidden_size, generator=seeded(1))
    ids, table = random_ids(12, world.config.vocab_size), block_table(12)
    fresh = head.forward(states.clone(), ragged_batch([(ids, 0, table)]), draft_kv(head))
    kv = draft_kv(head)
    own = head.forward(states[:8].clone(), ragged_batch([(ids[:8], 0, table)]), kv)[-1:]
    for position in (8, 9, 10):  # provisional
        own = head.forward(own, ragged_batch([([7], position, table)]), kv)
    after = head.forward(states[8:].clone(), ragged_batch([(ids[8:], 8, table)]), kv)
    assert_same(after, fresh[8:], "rows 8 to 11")


def test_a_row_does_not_know_its_neighbours(tiny: Tiny, tmp_path: Path) -> None:
    world = tiny("B")
    head, _ = head_and_reference(world, tmp_path, attention_bias=True, fc_norm=True)
    num_rows, hidden = 12, world.config.hidden_size
    captured = torch.randn(num_rows, len(head.capture_layers) * hidden, generator=seeded(1))
    ids = random_ids(num_rows, world.config.vocab_size)
    whole, single = draft_kv(head), draft_kv(head)
    states = fuse(head, captured)
    together = head.forward(states.clone(), ragged_batch([(ids, 0, block_table(num_rows))]), whole)
    logits = head.logits(together)
    for i in range(num_rows):
        row = fuse(head, captured[i : i + 1])
        assert_same(row, states[i : i + 1], f"fused row {i}")
        alone = head.forward(row, ragged_batch([(ids[i : i + 1], i, block_table(num_rows))]), single)
        assert_same(alone, together[i : i + 1], f"row {i}")
        assert_same(head.logits(alone), logits[i : i + 1], f"logits of row {i}")


def test_no_rows_are_valid(tiny: Tiny, tmp_path: Path) -> None:
    world = tiny("B")
    head, _ = head_and_reference(world, tmp_path, attention_bias=True, norm_before_fc=True)
    nothing = fuse(head, torch.zeros(0, 3 * world.config.hidden_size))
    nothing = head.forward(nothing, ragged_batch([]), draft_kv(head))
    assert nothing.shape == (0, world.config.hidden_size)
    assert head.logits(nothing).shape == (0, 60)


def test_bf16_stays_near_fp32(tiny: Tiny, tmp_path: Path) -> None:
    world = tiny("B")
    exact, _ = head_and_reference(world, tmp_path, norm_before_fc=True)
    rounded = load(tmp_path, world, torch.bfloat16)
    captured = torch.randn(30, 3 * world.config.hidden_size, generator=seeded(2))
    batch = ragged_batch([(random_ids(30, world.config.vocab_size), 0, block_table(30))])
    logits = [
        head.logits(head.forward(fuse(head, captured.to(dtype)), batch, draft_kv(head, dtype)))
        for head, dtype in ((exact, torch.float32), (rounded, torch.bfloat16))
    ]
    assert logits[1].dtype == torch.float32
    assert relative_error(logits[1], logits[0]) < 3e-2


def test_the_table_of_angles_covers_the_models_context(tiny: Tiny, tmp_path: Path) -> None:
    world = tiny("B")
    head, _ = head_and_reference(world, tmp_path, max_position_embeddings=8)
    assert len(head.attention.cos_sin) == world.config.max_context > BLOCK_SIZE * 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fuse(head: Any, captured: torch.Tensor) -> torch.Tensor:
    """What the head starts from, when the model's layers received `captured`."""
    nothing = torch.zeros(len(captured), 0)
    states: torch.Tensor = head.first_states(ModelOutput(logits=nothing, hidden=nothing, captured=captured))
    return states


def best(logits: torch.Tensor, target_ids: torch.Tensor | None) -> list[int]:
    assert target_ids is not None
    ids: list[int] = target_ids[logits.argmax(-1)].tolist()
    return ids
