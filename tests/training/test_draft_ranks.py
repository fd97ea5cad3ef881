"""Training over several ranks, and answers from a server: the same heads, however the work is shared."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.config import EngineConfig, Precision
from model.config import ModelConfig
from model.eagle3_config import Eagle3Config
from scheduler.request import SamplingParams
from sigmoe.cli import main
from tests.cluster.checkpoint_folder import write_tokenizer_files
from tests.cluster.serve_command import serving
from tests.engine.checkpoints import tiny_checkpoint
from training.draft import net as draft_net
from training.draft.answers import LoadedModel, Talk
from training.draft.chain import Chains, TalkBatch, Teacher
from training.draft.data import batches, collate, endless
from training.draft.fingerprint import fingerprint
from training.draft.loss import distillation_loss
from training.draft.net import DraftNet, KeysValues
from training.draft.ranks import Rank, run_ranks
from training.draft.served import ServedModel
from training.draft.shape import DraftShape
from training.draft.target import TargetModel
from training.draft.trainer import Trainer, evaluate
from training.draft.vocabulary import Vocabulary
from training.loss import CHUNK_ROWS

VOCABULARY = Vocabulary(torch.arange(0, 192, 2), 1.0)
CPU = torch.device("cpu")
STEPS = 3


@dataclass(frozen=True)
class Given:
    """What the ranks are told."""

    model: Path
    out: Path


def talks() -> list[Talk]:
    draw = np.random.default_rng(2)
    return [Talk(draw.integers(0, 192, 12 + 3 * i), 4 + i) for i in range(5)]


def groups() -> list[list[Talk]]:
    found = batches(talks(), max_tokens=48, max_length=40)
    assert len(found) % 2, "one rank has none left in the end"
    return found


def head(place: Rank, given: Given) -> tuple[DraftNet, Teacher]:
    torch.set_num_threads(1)
    model = TargetModel(given.model, max_tokens=64, num_threads=1, dtype=torch.float32, place=place)
    torch.manual_seed(3)
    last = model.config.num_hidden_layers - 1
    shape = DraftShape.beside(model.config, vocab_size=96, width=40, capture_layers=(0, 1, last))
    return DraftNet(shape, torch.float32), Teacher(model, VOCABULARY, shape.capture_layers)


def learn_and_score(place: Rank, given: Given) -> None:
    """Some steps, a checkpoint and the score, of which every rank tells."""
    net, teacher = head(place, given)
    trainer = Trainer(net, teacher, out=given.out, minutes=1.0, num_steps=2, place=place)
    stream = endless(groups(), 1, 0, place)
    for _ in range(STEPS):
        trainer.learn(next(stream), 0.1)
    trainer.save()
    score = evaluate(teacher, net, [collate(group) for group in groups()], 2, place)
    torch.save({"net": net.state_dict(), "score": asdict(score)}, given.out / f"{place.rank}.pt")


class BothRanks(Teacher):
    """Teaches what two ranks would learn in a step, one after the other, whatever batch it is given."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._streams = [endless(groups(), 1, 0, Rank(rank=rank, size=2)) for rank in range(2)]

    def chains(self, net: DraftNet, batch: TalkBatch, num_steps: int) -> Chains:
        found = [self._teacher.chains(net, next(stream), num_steps) for stream in self._streams]
        losses = [(a + b) / 2 for a, b in zip(found[0].losses, found[1].losses, strict=True)]
        return Chains([], [], losses)


def test_two_ranks_train_the_head_that_one_would_with_the_talks_of_both(tmp_path: Path) -> None:
    given = Given(tiny_checkpoint("B"), tmp_path)
    run_ranks(2, CPU, learn_and_score, given)
    net, teacher = head(Rank(), given)
    trainer = Trainer(net, BothRanks(teacher), out=tmp_path / "alone", minutes=1.0, num_steps=2)
    for _ in range(STEPS):
        trainer.learn(collate(talks()[:1]), 0.1)
    score = evaluate(teacher, net, [collate(group) for group in groups()], 2)
    assert [file.name for file in tmp_path.glob("draft-*.pt")] == [f"draft-{STEPS:07d}.pt"]
    for rank in range(2):
        told = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert told["score"] == asdict(score)
        for name, parameter in net.state_dict().items():
            # Sums in another order, which the optimiser's bf16 shows; a step moves weights by some 1e-2.
            torch.testing.assert_close(told["net"][name], parameter, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_what_is_dealt_is_everything_once_and_as_much_for_every_rank(size: int) -> None:
    shares = [Rank(rank=rank, size=size).dealt("abcd") for rank in range(size)]
    assert sorted(item for share in shares for item, is_own in share if is_own) == list("abcd")
    assert len({len(share) for share in shares}) == 1


def test_an_epoch_of_all_ranks_holds_every_talk_once() -> None:
    streams = [endless(groups(), 1, 0, Rank(rank=rank, size=2)) for rank in range(2)]
    taken = [next(streams[number % 2]).tokens.tolist() for number in range(2 * len(groups()))]
    whole = sorted(collate(group).tokens.tolist() for group in groups())
    assert sorted(taken[: len(whole)]) == sorted(taken[len(whole) :]) == whole


def test_ranks_without_gpus_of_their_own_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="--ranks: 3 ranks on 0 GPUs"):
        run_ranks(3, torch.device("cuda"), learn_and_score, Given(tmp_path, tmp_path))


def test_what_goes_wrong_on_one_rank_ends_them_all(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no-such-model"):
        run_ranks(2, CPU, learn_and_score, Given(tmp_path / "no-such-model", tmp_path))


def test_the_loss_and_its_gradients_are_those_of_the_formula() -> None:
    """Over more rows than are taken at a time, in fp64 but for the loss's own fp32."""
    draw = torch.Generator().manual_seed(4)
    num_rows = 2 * CHUNK_ROWS + 7
    hidden = torch.randn(num_rows, 8, generator=draw).requires_grad_()
    weight = torch.randn(30, 8, generator=draw).requires_grad_()
    target = torch.rand(num_rows, 30, generator=draw).softmax(-1)
    is_counted = torch.rand(num_rows, generator=draw) < 0.7
    loss, best = distillation_loss(hidden, weight, target, is_counted)
    (3.0 * loss).backward()
    exact_hidden, exact_weight = (part.detach().double().requires_grad_() for part in (hidden, weight))
    logits = exact_hidden @ exact_weight.t()
    expected = -(target.double() * logits.log_softmax(-1)).sum(-1)[is_counted].mean()
    (3.0 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(best, logits.argmax(-1))
    for ours, exact in ((hidden, exact_hidden), (weight, exact_weight)):
        assert ours.grad is not None and exact.grad is not None
        torch.testing.assert_close(ours.grad, exact.grad.float(), rtol=1e-4, atol=1e-6)
    nothing, _ = distillation_loss(hidden, weight, target, torch.zeros(num_rows, dtype=torch.bool))
    assert nothing.item() == 0.0


def test_a_long_talk_in_parts_is_the_talk_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.from_dir(tiny_checkpoint("B"))
    shape = DraftShape.beside(config, vocab_size=96, width=40, capture_layers=(0, 1, 2))
    torch.manual_seed(5)
    net = DraftNet(shape, torch.float32)
    captured = torch.randn(2, 11, 3 * shape.hidden_size)
    embedded = torch.randn(2, 11, shape.hidden_size)

    def gradients() -> list[torch.Tensor]:
        net.zero_grad()
        states, past = net.fuse(captured), KeysValues()
        for number in range(3):
            states = net.step(states, embedded, number, past)
        states.square().sum().backward()
        return [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]

    whole = gradients()
    monkeypatch.setattr(draft_net, "_WHOLE_ROWS", 4)
    for part, expected in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(tiny_checkpoint("B"), tmp_path_factory.mktemp("served") / "model"))
    write_tokenizer_files(folder)  # whose defaults of sampling are not those that answers are made with
    return folder


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_server_answers_as_the_model_in_this_process_does(model: Path, temperature: float) -> None:
    prompts = [[3, 4, 5], [9] * 30, [7, 8]]
    sampling = SamplingParams(max_tokens=12, temperature=temperature, seed=6)
    loaded = LoadedModel(EngineConfig(model_dir=str(model), precision=Precision.FP32, max_context=64))
    with serving(model, "--executor", "local", "--ranks", "1") as server:
        served = ServedModel(f"127.0.0.1:{server.port}", model)
        told = served.answer([*prompts, []], sampling)
        assert dict(told) == dict(loaded.answer(prompts, sampling)) and len(told) == 3
        with pytest.raises(ValueError, match=r"--server: .* serves a model of 16 experts, --model has 8"):
            ServedModel(f"127.0.0.1:{server.port}", tiny_checkpoint("A"))


@pytest.fixture
def command(model: Path, tmp_path: Path) -> list[str]:
    questions = tmp_path / "q.txt"
    questions.write_text("\n".join(f"What is asthma {number}?" for number in range(8)))
    paths = ["--model", str(model), "--questions", str(questions), "--held-out", str(questions)]
    sizes = ["--vocab-size", "128", "--width", "32", "--capture-layers", "0,1,2", "--max-answer", "8", "--steps", "2"]
    limits = ["--minutes", "0.001", "--threads", "2", "--device", "cpu"]
    return ["train-draft", *paths, *sizes, *limits, "--out", str(tmp_path / "head")]


def test_the_command_trains_on_two_ranks_and_goes_on_where_it_was(
    command: list[str], model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--ranks", "2"]) == 0
    told = capfd.readouterr().out
    assert "8 answers" in told and told.count("held-out questions, 2 drafts a round") == 1
    assert Eagle3Config.from_dir(tmp_path / "head", ModelConfig.from_dir(model)).capture_layers == (0, 1, 2)
    other = json.loads((tmp_path / "head.work" / "speculators" / "config.json").read_text())
    assert other["draft_vocab_size"] == 128
    assert main(command) == 0
    assert "going on from step" in capfd.readouterr().out


def test_answers_of_a_server_are_kept_for_a_training_without_it(
    command: list[str], model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(model, "--executor", "local", "--ranks", "1") as server:
        assert main([*command, "--server", f"127.0.0.1:{server.port}", "--answers-only"]) == 0
    assert not (tmp_path / "head").exists()
    assert len(list((tmp_path / "head.work").glob("*/answers-*.npz"))) == 2
    assert main([*command, "--server", f"127.0.0.1:{server.port}"]) == 0, "nobody is asked again"
    assert main([*command, "--out", str(tmp_path / "other"), "--server", f"127.0.0.1:{server.port}"]) == 3
    assert "failed to connect" in capfd.readouterr().err


def test_what_belongs_to_another_head_or_model_is_not_gone_on_with(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    for more, message in (
        (["--vocab-size", "144"], "trains a head of another vocab_size"),
        (["--max-answer", "7"], "holds answers of another max_answer"),
        (["--capture-layers", "2,0,1"], "eagle_aux_hidden_state_layer_ids"),
        (["--vocab-size", "3"], "--vocab-size: 3 is not allowed"),
        (["--max-answer", "1", "--out", str(tmp_path / "short")], "--questions: the model answers none of them"),
    ):
        assert main([*command, *more]) == 2
        assert message in capfd.readouterr().err
    questions = tmp_path / "q.txt"
    questions.write_text(questions.read_text().replace("asthma 3", "gout"))
    assert main(command) == 2
    assert "holds answers of another list of questions" in capfd.readouterr().err


def test_a_checkpoint_that_does_not_say_what_it_trains_is_refused(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    (newest,) = (tmp_path / "head.work").glob("draft-*.pt")
    state = torch.load(newest, weights_only=True)
    del state["head"]
    torch.save(state, newest)
    assert main(command) == 2
    assert "trains a head of another" in capfd.readouterr().err


def test_a_model_that_was_trained_anew_is_another(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("B"), tmp_path / "model"))
    before = fingerprint(folder)
    assert before == fingerprint(tiny_checkpoint("B"))
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert fingerprint(folder) != before
