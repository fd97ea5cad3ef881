"""Tiny worlds for the training tests."""

import random

import pytest
import torch
from tokenizers import Tokenizer

from training.chat import Document, Turn
from training.net import Net
from training.shape import Shape
from training.tokenizer import train_tokenizer

WORDS = ("fever", "asthma", "cough", "rest", "water", "doctor", "pain", "sleep", "heart", "lung")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors: a second thread only waits."""
    torch.set_num_threads(1)


@pytest.fixture
def shape() -> Shape:
    """Test configuration B of model-spec §10."""
    return Shape(vocab_size=512, hidden_size=128, num_hidden_layers=4, head_dim=32, intermediate_size=256,
                 moe_intermediate_size=64, max_position_embeddings=128)  # fmt: skip


@pytest.fixture
def random_net(shape: Shape) -> Net:
    """fp32 weights such that routing depends on the bias and the groups (model-spec §10)."""
    torch.manual_seed(0)
    net = Net(shape, torch.float32)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(1 + 0.2 * torch.randn_like(p) if p.dim() == 1 else 0.08 * torch.randn_like(p))
            assert "bias" not in name
        for block in net.moe_blocks():
            block.expert_bias.copy_(0.3 * torch.randn_like(block.expert_bias))
    return net


@pytest.fixture
def documents() -> list[Document]:
    """Two hundred conversations of one or two turns over ten words."""
    rng = random.Random(1)

    def text(n: int) -> str:
        return " ".join(rng.choices(WORDS, k=n))

    return [
        Document(f"entity {n % 40}", tuple(Turn(f"What is {text(2)}?", text(8) + ".") for _ in range(1 + n % 2)))
        for n in range(200)
    ]


@pytest.fixture
def tokenizer(documents: list[Document]) -> Tokenizer:
    return train_tokenizer(iter(documents), 320)
