from __future__ import annotations

import torch

from kernels.gate import GateShape
from kernels.linear import pack_weight
from router.gate import Gate
from router.load_stats import LoadStats


def test_gate_hands_on_ids_and_weights_of_the_right_kind() -> None:
    shape = GateShape(num_expert_groups=4, topk_groups=2, top_k=3, scale=2.5, normalise=True)
    gate = Gate(pack_weight(torch.randn(16, 8)), torch.zeros(16), shape)
    for num_rows in (0, 1, 7):
        choice = gate(torch.randn(num_rows, 8).to(torch.bfloat16))
        assert choice.ids.shape == choice.weights.shape == (num_rows, 3)
        assert (choice.ids.dtype, choice.weights.dtype) == (torch.int32, torch.float32)
        torch.testing.assert_close(choice.weights.sum(1), torch.full((num_rows,), 2.5))


def test_bias_moves_the_choice_and_not_the_weights() -> None:
    shape = GateShape(num_expert_groups=1, topk_groups=1, top_k=2, scale=1.0, normalise=True)
    weight, hidden = torch.eye(4), torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    bias = torch.tensor([0.0, 0.0, 0.0, 9.0])
    choice = Gate(pack_weight(weight), bias, shape)(hidden)
    assert set(choice.ids[0].tolist()) == {0, 3}
    scores = hidden.sigmoid()[0, choice.ids[0].long()]
    torch.testing.assert_close(choice.weights[0], scores / scores.sum())


def test_padding_chooses_nobody_and_says_so() -> None:
    shape = GateShape(num_expert_groups=4, topk_groups=2, top_k=3, scale=2.5, normalise=True)
    gate = Gate(pack_weight(torch.randn(16, 8)), torch.zeros(16), shape)
    hidden, load = torch.randn(3, 8), LoadStats(16)
    choice = gate(hidden)
    padded = gate(hidden, torch.tensor([True, False, True]), load)
    assert (padded.is_padded, choice.is_padded) == (True, False)
    assert (padded.ids[1] == -1).all() and torch.equal(padded.ids[::2], choice.ids[::2])
    assert padded.copies is None and sum(load.snapshot()) == 0, "what is not sorted is counted where it is sorted"
