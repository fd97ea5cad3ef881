"""Training a draft head: chains as an engine would run them, vocabulary, rounds, resume, export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.tokenizer import Tokenizer
from kernels.paged_attention import allocate_kv_layer
from model.eagle3 import load_eagle3
from model.eagle3_config import Eagle3Config
from sigmoe.cli import main
from tests.cluster.checkpoint_folder import write_tokenizer_files
from tests.engine.checkpoints import tiny_checkpoint
from tests.oracle.eagle3_reference import Eagle3Reference
from tests.oracle.tiny_models import BLOCK_SIZE, CPU, block_table, ragged_batch
from training.draft.answers import Talk, read_questions
from training.draft.chain import Chains, TalkBatch, Teacher, rounds
from training.draft.data import batches, collate, endless
from training.draft.export import export_head, head_tensors
from training.draft.net import DraftNet, KeysValues
from training.draft.shape import LAYOUTS, DraftShape, draft_config
from training.draft.target import TargetModel
from training.draft.trainer import Trainer
from training.draft.vocabulary import Vocabulary, always_drafted, choose_vocabulary


@pytest.fixture(scope="module")
def model() -> TargetModel:
    return TargetModel(tiny_checkpoint("B"), max_tokens=512, num_threads=1, dtype=torch.float32)


@pytest.fixture
def shape(model: TargetModel) -> DraftShape:
    last = model.config.num_hidden_layers - 1
    return DraftShape.beside(model.config, vocab_size=96, width=40, capture_layers=(0, 1, last))


@pytest.fixture
def net(shape: DraftShape) -> DraftNet:
    torch.manual_seed(1)
    return DraftNet(shape, torch.float32)


VOCABULARY = Vocabulary(torch.arange(0, 192, 2), 1.0)


def talks(count: int = 6) -> list[Talk]:
    draw = np.random.default_rng(2)
    return [Talk(draw.integers(0, 192, 12 + 3 * i), 4 + i) for i in range(count)]


def test_a_step_sees_what_a_chain_would_find_in_its_cache(model: TargetModel, net: DraftNet) -> None:
    batch = collate(talks(1))
    captured, _ = model.states(batch.tokens, batch.lengths, net.shape.capture_layers)
    length, tokens = batch.tokens.shape[1], batch.tokens[0]
    config = Eagle3Config.from_dict(draft_config(net.shape, "sglang"), model.config)
    weights = {
        name.replace("midlayer.", "layer."): tensor.float()
        for name, tensor in head_tensors(net, VOCABULARY, "sglang").items()
    }
    with torch.no_grad():
        for name, parameter in (("fc", net.fc), ("q", net.q), ("k", net.k), ("v", net.v), ("o", net.o)):
            where = f"{name}.weight" if name == "fc" else f"layer.self_attn.{name}_proj.weight"
            parameter.copy_(weights[where])
        for name in ("gate", "up", "down"):
            getattr(net, name).copy_(weights[f"layer.mlp.{name}_proj.weight"])
        net.head.copy_(weights["lm_head.weight"])
    reference = Eagle3Reference(config, weights, model.embedding)
    states, past = net.fuse(captured), KeysValues()
    first = states[0]
    steps = []
    for number in range(3):
        shifted = torch.cat([tokens[number + 1 :], torch.zeros(number + 1, dtype=torch.int64)])
        embedded = torch.nn.functional.embedding(shifted, model.embedding)[None]
        states = net.step(states, embedded, number, past)
        steps.append(states[0])
    for row in range(length - 4):
        chain = first[: row + 1]
        for number in range(3):
            out = reference.forward(chain, tokens[1 : row + 2 + number])
            torch.testing.assert_close(steps[number][row], out[-1], rtol=1e-4, atol=1e-4)
            chain = torch.cat([chain, out[-1:]])
    torch.testing.assert_close(net.logits(steps[2][0]), reference.logits(steps[2][:1])[0], rtol=1e-4, atol=1e-4)


def test_what_is_drafted_are_the_answers_tokens(model: TargetModel, net: DraftNet) -> None:
    batch = collate(talks(3))
    chains = Teacher(model, VOCABULARY, net.shape.capture_layers).chains(net, batch, 2)
    for number, wanted in enumerate(chains.wanted):
        for row, talk in enumerate(talks(3)):
            places = [i + 2 + number for i in torch.nonzero(wanted[row]).flatten().tolist()]
            first = max(talk.answer_start + 1, number + 2)
            assert places == list(range(first, len(talk.tokens)))
        assert (chains.drafts[number][wanted] % 2 == 0).all()  # of the vocabulary
        assert (chains.drafts[number][~wanted] == -1).all()
    chains.loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_rounds_begin_where_the_one_before_ended() -> None:
    tokens = torch.tensor([[9, 9, 1, 2, 3, 4, 5, 6]])  # the answer is 1 .. 6
    batch = TalkBatch(tokens, torch.tensor([8]), torch.tensor([2]))
    right = [torch.cat([tokens[:, n + 2 :], torch.full((1, n + 2), -1)], 1) for n in range(2)]
    assert list(rounds(batch, Chains(right, [], []))) == [2, 2]  # 2, 3 and 4; 5, 6 and the end
    right[0][0, 1] = 7  # the first draft of the first round, for the place of 2
    assert list(rounds(batch, Chains(right, [], []))) == [0, 2, 1]
    wrong = [torch.zeros_like(tokens)] * 2
    assert list(rounds(batch, Chains(wrong, [], []))) == [0] * 5


def test_the_vocabulary_is_what_is_said_most_and_what_must_be() -> None:
    counts = np.array([5, 0, 7, 7, 1, 0])
    chosen = choose_vocabulary(counts, 3, forced=[5])
    assert chosen.ids.tolist() == [2, 3, 5] and chosen.coverage == pytest.approx(14 / 20)
    assert chosen.places(6).tolist() == [-1, -1, 0, 1, -1, 2]
    assert choose_vocabulary(counts, 6).coverage == 1.0


def test_signs_ends_and_the_template_can_always_be_drafted(tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path)
    tokenizer = Tokenizer.from_dir(tmp_path)
    start, unused = tokenizer.encode_now("<role>")[0], tokenizer.encode_now("</role>")[0]
    chosen = always_drafted(tokenizer, [0], [start, *tokenizer.encode_now("what is 7?")])
    assert {0, start, *(tokenizer.encode_now(sign)[0] for sign in "0123456789?.,;()")} <= chosen
    assert unused not in chosen and not chosen & set(tokenizer.encode_now("abcxyz "))


def test_batches_hold_every_talk_once_and_little_padding() -> None:
    groups = batches([*talks(), Talk(np.arange(60), 58)], max_tokens=60, max_length=40)
    assert sorted(len(talk.tokens) for group in groups for talk in group) == [12, 15, 18, 21, 24, 27]
    assert all(len(group) * max(len(talk.tokens) for talk in group) <= 60 for group in groups)
    stream = endless(groups, seed=1, first=len(groups))
    later = [next(stream).tokens.shape for _ in groups]
    assert sorted(later) == sorted(collate(group).tokens.shape for group in groups)


def test_a_run_goes_on_where_it_was_stopped(model: TargetModel, shape: DraftShape, tmp_path: Path) -> None:
    teacher = Teacher(model, VOCABULARY, shape.capture_layers)
    groups = batches(talks(), max_tokens=60, max_length=40)

    def trainer(out: Path) -> Trainer:
        torch.manual_seed(3)
        return Trainer(DraftNet(shape, torch.float32), teacher, out=out, minutes=1.0, num_steps=2)

    whole = trainer(tmp_path / "whole")
    stream = endless(groups, 1, 0)
    for _ in range(6):
        whole.learn(next(stream), 0.1)
    stopped = trainer(tmp_path / "stopped")
    stream = endless(groups, 1, 0)
    for _ in range(3):
        stopped.learn(next(stream), 0.1)
    stopped.save()
    resumed = trainer(tmp_path / "stopped")
    assert resumed.resume() and resumed.step == 3
    stream = endless(groups, 1, resumed.step)
    for _ in range(3):
        resumed.learn(next(stream), 0.1)
    for name, parameter in whole.net.state_dict().items():
        torch.testing.assert_close(resumed.net.state_dict()[name], parameter, rtol=1e-5, atol=1e-6)


def test_learning_learns(model: TargetModel, net: DraftNet, tmp_path: Path) -> None:
    teacher = Teacher(model, VOCABULARY, net.shape.capture_layers)
    trainer = Trainer(net, teacher, out=tmp_path, minutes=1.0, num_steps=2)
    batch = collate(talks(2))
    losses = [sum(trainer.learn(batch, 0.0)) for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_exported_head_drafts_in_the_engine_as_in_training(
    model: TargetModel, net: DraftNet, tmp_path: Path, layout: str
) -> None:
    vocabulary = Vocabulary(torch.arange(0, 192, 2), 1.0)
    export_head(net, vocabulary, tmp_path, layout)
    head = load_eagle3(tmp_path, model.config, model.embedding, torch.float32, CPU)
    assert head.capture_layers == net.shape.capture_layers and head.target_ids is not None
    assert head.target_ids.tolist() == vocabulary.ids.tolist()
    batch = collate(talks(1))
    captured, _ = model.states(batch.tokens, batch.lengths, net.shape.capture_layers)
    length = batch.tokens.shape[1]
    shifted = [*batch.tokens[0, 1:].tolist(), 0]
    kv = allocate_kv_layer(8, BLOCK_SIZE, head.num_kv_heads, head.head_dim, torch.float32, CPU)
    ours = head.forward(head.fc(captured[0]), ragged_batch([(shifted, 0, block_table(length))]), kv)
    with torch.no_grad():
        embedded = torch.nn.functional.embedding(torch.tensor([shifted]), model.embedding)
        theirs = net.step(net.fuse(captured), embedded, 0, KeysValues())
    # The export rounds weights to bf16.
    torch.testing.assert_close(head.logits(ours), net.logits(theirs)[0], rtol=0.05, atol=0.1)


def test_questions_are_read_from_both_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"turns": ["What is asthma?", "And then?"]}\n')
    (tmp_path / "a.txt").write_text("What is asthma?\n\nWhat is gout?\n")
    assert read_questions(tmp_path / "a.jsonl") == ["What is asthma?"]
    assert read_questions(tmp_path / "a.txt") == ["What is asthma?", "What is gout?"]
    (tmp_path / "b.jsonl").write_text('{"turns": []}\n')
    with pytest.raises(ValueError, match="line 1 is not of the form"):
        read_questions(tmp_path / "b.jsonl")


def test_the_command_names_the_flag_at_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = tmp_path / "q.txt"
    questions.write_text("What is asthma?\n")
    given = ["train-draft", "--model", "m", "--held-out", str(questions), "--out", str(tmp_path / "head")]
    for more, message in (
        (["--questions", str(tmp_path / "nothing")], "--questions:"),
        (["--questions", str(questions), "--minutes", "0"], "--minutes: 0.0 is not allowed"),
        (["--questions", str(questions), "--capture-layers", "a"], "--capture-layers: 'a'"),
    ):
        assert main([*given, *more]) == 2
        assert message in capsys.readouterr().err
