"""The draft head that ships: it drafts as well as its training says, and changes no token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.speculation import PROMPTS, read_prompts
from engine.build import build_engine
from engine.config import EngineConfig, Precision, SpeculationConfig
from engine.engine import Engine
from model.config import ModelConfig
from model.eagle3_config import Eagle3Config
from scheduler.request import DraftMethod, Request, SamplingParams
from training.draft.answers import Talk
from training.draft.chain import Teacher
from training.draft.data import collate
from training.draft.net import DraftNet
from training.draft.shape import DraftShape
from training.draft.target import TargetModel
from training.draft.trainer import evaluate
from training.draft.vocabulary import Vocabulary

MODEL = Path(__file__).parents[2] / "models" / "sigmoe-demo"
NUM_DRAFTS = 3
NUM_QUESTIONS = 24
MAX_TOKENS = 64
Answers = list[tuple[int, ...]]

pytestmark = pytest.mark.slow


def engine(method: DraftMethod) -> Engine:
    return build_engine(
        EngineConfig(
            model_dir=str(MODEL),
            precision=Precision.FP32,
            max_sequences=NUM_QUESTIONS,
            max_context=512,
            speculation=SpeculationConfig(method=method, max_drafts=NUM_DRAFTS, adaptive=False),
        )
    )


def answers(asked: Engine, prompts: list[tuple[int, ...]], temperature: float = 0.0) -> Answers:
    sampling = [
        SamplingParams(max_tokens=MAX_TOKENS, temperature=temperature, seed=i, repetition_penalty=1.05)
        if temperature
        else SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
        for i in range(len(prompts))
    ]
    told: Answers = [()] * len(prompts)
    for i, prompt in enumerate(prompts):
        asked.add(Request(request_id=str(i), prompt=prompt, sampling=sampling[i]))
    while asked.has_work:
        for delta in asked.step():
            told[int(delta.request_id)] += delta.token_ids
    return told


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    return read_prompts(PROMPTS, MODEL)[:NUM_QUESTIONS]


def test_it_changes_no_token_and_drafts_as_its_training_says(prompts: list[tuple[int, ...]]) -> None:
    drafting = engine(DraftMethod.EAGLE3)
    told = answers(drafting, prompts)
    assert told == answers(engine(DraftMethod.NONE), prompts)
    counts = drafting.stats().drafts
    tau = counts.num_committed / counts.num_rounds
    assert tau == pytest.approx(simulated_tau(prompts, told), rel=0.03)
    assert tau > 2.5


def test_it_changes_no_drawn_token(prompts: list[tuple[int, ...]]) -> None:
    drawn = answers(engine(DraftMethod.EAGLE3), prompts, temperature=0.7)
    assert drawn == answers(engine(DraftMethod.NONE), prompts, temperature=0.7)


def simulated_tau(prompts: list[tuple[int, ...]], told: Answers) -> float:
    """By the training code, from the weights as they lie on disk."""
    config, folder = ModelConfig.from_dir(MODEL), MODEL / "eagle3"
    head = Eagle3Config.from_dir(folder, config)
    stored = load_file(folder / "model.safetensors")
    shape = DraftShape(
        hidden_size=head.hidden_size,
        intermediate_size=head.intermediate_size,
        num_attention_heads=head.num_attention_heads,
        num_key_value_heads=head.num_key_value_heads,
        head_dim=head.head_dim,
        vocab_size=head.draft_vocab_size,
        capture_layers=head.capture_layers,
        target_vocab_size=config.vocab_size,
        rms_norm_eps=head.rms_norm_eps,
        rope_theta=head.rope.rope_theta,
    )
    net = DraftNet(shape, torch.float32)
    names = {
        "fc": "fc",
        "embedding_norm": "midlayer.input_layernorm",
        "hidden_norm": "midlayer.hidden_norm",
        "post_norm": "midlayer.post_attention_layernorm",
        **{name: f"midlayer.self_attn.{name}_proj" for name in "qkvo"},
        **{name: f"midlayer.mlp.{name}_proj" for name in ("gate", "up", "down")},
        "norm": "norm",
        "head": "lm_head",
    }
    net.load_state_dict({ours: stored[f"{theirs}.weight"].float() for ours, theirs in names.items()})
    vocabulary = Vocabulary(stored["d2t"] + torch.arange(len(stored["d2t"])), 1.0)
    model = TargetModel(MODEL, max_tokens=8192, num_threads=2, dtype=torch.float32)
    talks = [
        Talk(np.array([*prompt, *answer], dtype=np.int64), len(prompt))
        for prompt, answer in zip(prompts, told, strict=True)
        if len(answer) > 1
    ]
    return evaluate(Teacher(model, vocabulary, shape.capture_layers), net, [collate(talks)], NUM_DRAFTS).tau
