from __future__ import annotations

import math

import pytest
import torch
from transformers import Glm4MoeConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.config import Rope
from model.rope import attention_factor, cos_sin_table, inverse_frequencies


def rope(**changes: object) -> Rope:
    fields: dict[str, object] = {"rope_theta": 600000.0, "rotary_dim": 64, "original_max_position_embeddings": 32768}
    return Rope.model_validate(fields | changes)


YARN = {"rope_type": "yarn", "factor": 4.0}


def test_plain_frequencies_are_powers_of_theta() -> None:
    frequencies = inverse_frequencies(rope())
    assert frequencies.shape == (32,)
    for i in (0, 1, 31):
        assert frequencies[i].item() == pytest.approx(600000.0 ** (-2 * i / 64), rel=1e-6)
    assert attention_factor(rope()) == 1.0


def test_yarn_numbers_of_the_recommended_block() -> None:
    """The figures that model-spec §2 derives: ramp from pair 12 to pair 21, m = 1.138629."""
    stretched, plain = inverse_frequencies(rope(**YARN)), inverse_frequencies(rope())
    assert torch.equal(stretched[:13], plain[:13])
    torch.testing.assert_close(stretched[21:], plain[21:] / 4)
    torch.testing.assert_close(stretched[15], plain[15] * (1 - 3 / 9 + 3 / 9 / 4))
    assert attention_factor(rope(**YARN)) == pytest.approx(1.138629, abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        YARN,
        YARN | {"factor": 1.0},
        YARN | {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8},
        YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        YARN | {"attention_factor": 1.5},
        YARN | {"original_max_position_embeddings": 32},
    ],
)
def test_yarn_agrees_with_transformers(changes: dict[str, object]) -> None:
    ours = rope(**changes)
    parameters = {"rope_theta": 600000.0, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 32768}
    config = Glm4MoeConfig(head_dim=128, rope_parameters=parameters | changes, max_position_embeddings=131072)
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    torch.testing.assert_close(inverse_frequencies(ours), frequencies, rtol=1e-6, atol=0)
    assert attention_factor(ours) == pytest.approx(factor)


def test_table_holds_cosines_then_sines_scaled() -> None:
    table = cos_sin_table(rope(rotary_dim=8, **YARN), 50)
    assert table.shape == (50, 8)
    assert table.dtype is torch.float32
    m = attention_factor(rope(**YARN))
    assert table[0].tolist() == pytest.approx([m] * 4 + [0.0] * 4)
    assert table[7, 0].item() == pytest.approx(m * math.cos(7.0), rel=1e-5)
    assert table[7, 4].item() == pytest.approx(m * math.sin(7.0), rel=1e-5)
