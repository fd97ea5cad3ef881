"""The MTP layer against its formulas (model-spec §5): no other implementation exists to compare with."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.paged_attention import allocate_kv_layer
from tests.oracle.comparison import random_ids, relative_error
from tests.oracle.reference import ReferenceModel
from tests.oracle.tiny_models import BLOCK_SIZE, CPU, TinyModel, block_table, kv_cache, ragged_batch, run_prompt


def test_mtp_states_and_logits_follow_the_formulas(tiny: Callable[[str], TinyModel]) -> None:
    world = tiny("C")
    config, model = world.config, world.load()
    ids = random_ids(21, config.vocab_size)
    reference = ReferenceModel(config, world.tensors)
    main = reference.forward(ids[:-1])
    expected = reference.mtp(main.hidden, ids[1:])

    hidden, _ = model.hidden_states(ragged_batch([(ids[:-1], 0, block_table(20))]), kv_cache(model))
    own_kv = allocate_kv_layer(8, BLOCK_SIZE, config.num_key_value_heads, config.head_dim, torch.float32, CPU)
    assert model.mtp is not None
    states = model.mtp.forward(hidden, ragged_batch([(ids[1:], 0, block_table(20))]), own_kv)
    assert relative_error(hidden, main.hidden) < 1e-5
    assert relative_error(states, expected) < 1e-5
    assert relative_error(model.lm_head(states), reference.head(expected)) < 1e-5


def test_as_a_draft_model_it_goes_on_from_its_own_states(tiny: Callable[[str], TinyModel]) -> None:
    world = tiny("C")
    config, model = world.config, world.load()
    reference, ids = ReferenceModel(config, world.tensors), random_ids(13, config.vocab_size)
    main = reference.forward(ids[:-1])
    head = model.mtp
    assert head is not None and head.capture_layers == () and head.target_ids is None and head.is_collective

    output = model.forward(ragged_batch([(ids[:-1], 0, block_table(12))]), kv_cache(model), head.capture_layers)
    kv = allocate_kv_layer(8, BLOCK_SIZE, head.num_kv_heads, head.head_dim, torch.float32, CPU)
    states = head.forward(head.first_states(output), ragged_batch([(ids[1:], 0, block_table(12))]), kv)
    known, fed = ids[1:], main.hidden
    expected = reference.mtp(fed, known)
    for step in range(3):
        scores = reference.head(expected[-1:])
        assert relative_error(head.logits(states[-1:]), scores) < 1e-5
        token = int(scores.argmax())
        states = head.forward(states[-1:], ragged_batch([([token], 12 + step, block_table(16))]), kv)
        known, fed = [*known, token], torch.cat([fed, expected[-1:]])
        expected = reference.mtp(fed, known)
        assert relative_error(states, expected[-1:]) < 1e-5
    assert head.forward(states[:0], ragged_batch([]), kv).shape == (0, config.hidden_size)


def test_plain_decoding_does_not_touch_the_mtp_layer(tiny: Callable[[str], TinyModel]) -> None:
    world = tiny("C")
    ids = random_ids(16, world.config.vocab_size)
    assert (
        relative_error(
            run_prompt(world.load(), ids).logits, ReferenceModel(world.config, world.tensors).forward(ids).logits
        )
        < 1e-5
    )
