"""The loop learns, and a killed run goes on as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from training.chat import Document
from training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from training.corpus import Sampler, encode_group, save_group
from training.net import Net
from training.optim import balance, load_skew, orthogonalise
from training.schedule import MAIN_SHARES, Budget, is_front_door, learning_rate_scale
from training.shape import PRESETS
from training.tokenizer import save_tokenizer
from training.trainer import Plan, Trainer


def make_trainer(documents: list[Document], tokenizer: Tokenizer, out: Path, part: str = "trunk") -> Trainer:
    torch.manual_seed(5)
    net = Net(replace(PRESETS["smoke"], vocab_size=320))
    groups = {name: encode_group(documents, tokenizer) for name in MAIN_SHARES}
    plan = Plan(part=part, budget=Budget(3600, steps=40), rows=4, out=out)
    return Trainer(net, Sampler(groups, row=128, pad=0, seed=5), plan, log=lambda line: None)


def test_loss_falls(documents: list[Document], tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(documents, tokenizer, tmp_path)
    losses = [trainer.step() for _ in range(25)]
    assert losses[0] > 5.5  # ln 320 = 5.77
    assert sum(losses[-5:]) / 5 < losses[0] - 1, losses


def test_resumed_run_repeats_the_losses(documents: list[Document], tokenizer: Tokenizer, tmp_path: Path) -> None:
    straight = make_trainer(documents, tokenizer, tmp_path)
    for _ in range(4):
        straight.step()
    straight.save()
    expected = [straight.step() for _ in range(4)]
    path = newest_checkpoint(tmp_path, "trunk")
    assert path is not None
    resumed = make_trainer(documents, tokenizer, tmp_path)
    resumed.load_state_dict(load_checkpoint(path))
    assert [resumed.step() for _ in range(4)] == pytest.approx(expected, rel=1e-3)


def test_mtp_part_leaves_the_trunk_alone(documents: list[Document], tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(documents, tokenizer, tmp_path, part="mtp")
    before = {k: v.clone() for k, v in trainer.net.state_dict().items()}
    losses = [trainer.step() for _ in range(12)]
    after = trainer.net.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all(k.startswith("mtp.") for k in changed), sorted(changed)[:5]
    assert losses[-1] < losses[0]


def test_killed_command_resumes(documents: list[Document], tokenizer: Tokenizer, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    save_tokenizer(tokenizer, data)
    for name in (*MAIN_SHARES, "heldout"):
        save_group(encode_group(documents, tokenizer), data, name)
    command = [sys.executable, "-m", "training.train", "--data", str(data), "--out", str(out), "--minutes", "0.05",
               "--preset", "smoke", "--probe-tokens", "3", "--threads", "1", "--rows", "2", "--row", "64",
               "--checkpoint-every", "1", "--resume"]  # fmt: skip
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while newest_checkpoint(out, "trunk") is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    kept = newest_checkpoint(out, "trunk")
    assert kept is not None, "no checkpoint within 60 s"
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert f"resumed={kept.name}" in text
    assert "heldout_answer_nats=" in text and "tokens_per_s=" in text
    last = newest_checkpoint(out, "trunk")
    assert last is not None and last > kept


def test_checkpoints_are_whole_or_absent(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, "trunk", step, {"step": step})
    (tmp_path / "trunk-0000004.partial").write_bytes(b"half")
    assert [p.name for p in sorted(tmp_path.glob("*.pt"))] == ["trunk-0000002.pt", "trunk-0000003.pt"]
    newest = newest_checkpoint(tmp_path, "trunk")
    assert newest is not None and load_checkpoint(newest) == {"step": 3}


@pytest.mark.parametrize("shape", [(6, 8, 16), (16, 8), (2, 3, 12, 30)])
def test_orthogonalise_pushes_singular_values_to_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.3 and values.max() < 1.4  # Newton–Schulz's own band, bf16


def test_balance_moves_bias_against_load(random_net: Net) -> None:
    block = random_net.moe_blocks()[0]
    block.load = torch.arange(16).float()
    before = block.expert_bias.clone()
    balance([block])
    assert (block.expert_bias - before).sign().tolist() == [1.0] * 8 + [-1.0] * 8
    assert load_skew([block]) == pytest.approx(2.0)


def test_schedule_follows_the_clock_and_ends_at_the_floor() -> None:
    budget = Budget(100.0, steps=10)
    assert budget.progress(elapsed_s=50, step=1) == 0.5
    assert budget.progress(elapsed_s=10, step=8) == 0.8
    assert replace(budget, steps=None).progress(elapsed_s=250, step=1) == 1.0
    scales = [learning_rate_scale(p / 100) for p in range(101)]
    assert max(scales) == scales[10] == 1.0 and scales[100] == pytest.approx(0.02)
    assert all(a >= b for a, b in pairwise(scales[30:]))
    assert not is_front_door(0.5) and is_front_door(0.7)
