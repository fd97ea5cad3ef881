"""What is compiled ahead is what is launched: the same keys, and Triton's cache is hit."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import triton

import engine.build
import engine.precompile.ahead
from benchmarks.fp8_checkpoint import BLOCK, CHANNEL
from benchmarks.shapes import shape_dict
from engine.config import (
    EngineConfig,
    GraphConfig,
    GraphUse,
    KernelChoice,
    KVPrecision,
    SpeculationConfig,
)
from engine.precompile.ahead import Ahead, OnReport, _digest, compile_ahead, compile_kernels
from engine.precompile.job import Report
from model.config import ModelConfig
from model.eagle3_config import Eagle3Config
from scheduler.request import DraftMethod
from tests.engine.checkpoints import tiny_checkpoint
from tests.oracle.eagle3_heads import flat_config, random_weights, write_head
from tests.oracle.fp8_checkpoint import write_fp8
from tests.oracle.tiny_models import tiny_model

ROOT = Path(__file__).resolve().parent.parent.parent
COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def in_a_process(what: str, config: EngineConfig, folder: Path) -> Any:
    """What `precompile_world` says, in a process in which Triton compiles."""
    file = folder / f"{what}.pickle"
    file.write_bytes(pickle.dumps(config))
    command = [sys.executable, "-m", "tests.engine.precompile_world", what, str(file), str(folder / "cache")]
    done = subprocess.run(command, cwd=ROOT, env=COMPILING, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    return json.loads(done.stdout)


def is_running(pid: str) -> bool:
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def compile_into(cache: Path, config: EngineConfig) -> list[Report]:
    """Through the process that a rank starts; its reports, or the one that there was nothing to do."""
    file = cache.parent / "ahead.pickle"
    file.write_bytes(pickle.dumps(config))
    code = (
        "import json, pickle, sys, dataclasses, triton; from engine.precompile.ahead import compile_kernels; "
        "triton.knobs.cache.dir = sys.argv[2]; config = pickle.load(open(sys.argv[1], 'rb')); said = []; "
        "last = compile_kernels(config, (9, 0), said.append, 2); "
        "print(json.dumps([dataclasses.asdict(report) for report in said or [last]]))"
    )
    command = [sys.executable, "-c", code, str(file), str(cache)]
    done = subprocess.run(command, cwd=ROOT, env=COMPILING, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    return [Report(**fields | {"failed": tuple(fields["failed"])}) for fields in json.loads(done.stdout)]


def configured(folder: Path, **changes: Any) -> EngineConfig:
    base = EngineConfig(
        model_dir=str(folder),
        device="cpu",
        kernels=KernelChoice.TRITON,
        num_blocks=64,
        max_sequences=9,
        max_rows_per_step=40,
        max_context=64,
        graphs=GraphConfig(use=GraphUse.UNRECORDED, max_sequences=6),
    )
    return dataclasses.replace(base, **changes)


def fp8_model(folder: Path, quantization: dict[str, Any]) -> Path:
    source = tiny_model(shape_dict("F") | {"num_hidden_layers": 2}, folder / "plain")
    return write_fp8(source, folder / "fp8", quantization)[0].folder


def head(folder: Path, model: Path) -> Path:
    target = ModelConfig.from_dir(model)
    raw = flat_config(target, draft_vocab_size=target.vocab_size // 2)
    return write_head(folder / "head", raw, random_weights(Eagle3Config.from_dict(raw, target), target))


def demand_equal(config: EngineConfig, folder: Path) -> None:
    ahead, launched = (in_a_process(what, config, folder) for what in ("ahead", "launched"))
    assert len(ahead) == len(set(ahead)) > 20
    assert set(launched) - set(ahead) == set(), "launched, and not compiled ahead"
    assert set(ahead) - set(launched) == set(), "compiled ahead for nobody"


@pytest.mark.parametrize("method", [DraftMethod.NONE, DraftMethod.EAGLE3, DraftMethod.MTP])
def test_keys_are_those_of_the_launches(tmp_path: Path, method: DraftMethod) -> None:
    """Of a start with all its buckets and of steps of every size, with weights, on addresses."""
    model = tiny_model("C", tmp_path / "model").folder
    draft_dir = str(head(tmp_path, model)) if method is DraftMethod.EAGLE3 else None
    speculation = SpeculationConfig(method=method, draft_dir=draft_dir, max_drafts=3)
    demand_equal(configured(model, speculation=speculation), tmp_path)


@pytest.mark.parametrize("quantization", [BLOCK, CHANNEL], ids=["block", "channel"])
def test_keys_with_fp8(tmp_path: Path, quantization: dict[str, Any]) -> None:
    """Weights and cache."""
    demand_equal(configured(fp8_model(tmp_path, quantization), kv_precision=KVPrecision.FP8), tmp_path)


def test_keys_where_batches_change_nothing(tmp_path: Path) -> None:
    demand_equal(configured(fp8_model(tmp_path, BLOCK), batch_invariant=True), tmp_path)


@pytest.mark.parametrize("group_size", [2, 3])
def test_keys_in_a_group(tmp_path: Path, group_size: int) -> None:
    demand_equal(configured(fp8_model(tmp_path, BLOCK), group_size=group_size, rank=1), tmp_path)


@pytest.mark.slow
def test_a_start_behind_it_compiles_nothing(tmp_path: Path) -> None:
    """And whatever is missing from the cache is compiled when it is launched."""
    config = configured(fp8_model(tmp_path, BLOCK), graphs=GraphConfig(use=GraphUse.OFF), max_sequences=2)
    cache = tmp_path / "cache"
    reports = compile_into(cache, config)
    assert reports[-1] == Report(num_done=reports[-1].num_all, num_all=reports[-1].num_all)
    assert [report.num_done for report in reports] == list(range(reports[-1].num_all + 1))
    told = in_a_process("hits", config, tmp_path)
    assert told["compiled"] == [] and len(told["found"]) > 20
    assert compile_into(cache, config) == [Report()], "there is a mark"
    for mark in cache.glob("*.compiled"):
        mark.unlink()
    assert compile_into(cache, config)[-1].num_found == reports[-1].num_all, "all of it is there"
    lost = next(cache.glob("*/answers_norm_kernel.json"))
    shutil.rmtree(lost.parent)
    assert in_a_process("hits", config, tmp_path)["compiled"] == ["answers_norm_kernel"]


def test_nothing_of_it_stops_a_start(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, and the rank goes on."""

    def fail(on_report: OnReport) -> Report:
        on_report(Report(num_all=3))
        on_report(Report(num_done=1, num_all=3))
        raise OSError("no room")

    shown: list[tuple[int, int]] = []
    Ahead(fail).wait(lambda done, total: shown.append((done, total)))
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "no room" in caplog.text
    assert set(shown) <= {(0, 0), (0, 3), (1, 3)}


def test_a_compiler_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With all its processes, and a warning."""
    begin, children = subprocess.Popen, tmp_path / "children"
    hanging = f"import os, time; os.fork(); open({str(children)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep(600)"

    def begin_hanging(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = begin([sys.executable, "-c", hanging], **options)
        while not children.exists() or len(children.read_text().split()) < 2:
            assert process.poll() is None
        return process

    monkeypatch.setattr(subprocess, "Popen", begin_hanging)
    monkeypatch.setattr(engine.precompile.ahead, "_PATIENCE_S", 0.1)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    config = configured(tiny_model("C", tmp_path / "model").folder)
    assert compile_kernels(config, (9, 0), lambda report: None) == Report()
    assert [record.levelname for record in caplog.records if "not_compiled" in record.message] == ["WARNING"]
    while any(map(is_running, children.read_text().split())):  # killed, and perhaps not gone yet
        pass


def test_a_start_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the loading and before the first step, and says so."""

    def compile_all(on_report: OnReport) -> Report:
        loaded.wait()
        on_report(Report(num_done=1, num_all=3))
        return Report()

    stages: list[tuple[str, int, int]] = []
    loaded = threading.Event()

    def on_progress(*step: int | str) -> None:
        stages.append(step)  # type: ignore[arg-type]
        if step[0] == "compiling":
            loaded.set()

    monkeypatch.setattr(engine.build, "compile_ahead", lambda config, device: Ahead(compile_all))
    config = configured(tiny_checkpoint("C"), kernels=KernelChoice.AUTO, graphs=GraphConfig(use=GraphUse.OFF))
    engine.build.build_engine(config, on_progress)
    assert list(dict.fromkeys(stage for stage, *_ in stages)) == ["loading", "compiling", "warming"]


def test_what_does_not_compile_is_named_once(tmp_path: Path) -> None:
    """By its kernel; there is no mark then, and the other kernels are compiled."""
    model = tiny_model(shape_dict("C") | {"num_hidden_layers": 1}, tmp_path / "model").folder
    config = configured(model, graphs=GraphConfig(use=GraphUse.OFF), max_sequences=1, max_rows_per_step=1)
    code = (
        "import logging, pickle, sys, triton; import engine.precompile.process as process; "
        "import kernels.ahead as ahead; variants = process.variants_of; "
        "process.variants_of = lambda launch: [ahead.Variant('kernels.gate.triton_kernel', 'choose_kernel', '{}')] "
        "+ variants(launch)[:1]; from engine.precompile.job import Job; "
        "config = pickle.load(open(sys.argv[1], 'rb')); "
        "job = Job(config=config, capability=(9, 0), cache_dir=sys.argv[2], num_processes=1); "
        "last = list(process._compiled(job))[-1]; "
        "print(last.num_done, last.failed, 'KeyError' in last.error, last.is_whole)"
    )
    file = tmp_path / "config.pickle"
    file.write_bytes(pickle.dumps(config))
    command = [sys.executable, "-c", code, str(file), str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=ROOT, env=COMPILING, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2 ('choose_kernel',) True False", done.stderr[-2000:]


def test_a_model_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The loading says what is wrong with it."""
    device = torch.device("cpu")
    assert compile_ahead(configured(tmp_path), device) is None, "no GPU, nothing to compile"
    Ahead(lambda on_report: compile_kernels(configured(tmp_path), (9, 0), on_report)).wait(lambda done, total: None)
    assert len(caplog.records) <= 1


@pytest.mark.parametrize("changes", [{"block_size": 32}, {"max_sequences": 3}, {"batch_invariant": True}])
def test_another_configuration_has_another_mark(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny_model("C", tmp_path / "model").folder
    config = configured(model, group_size=2)
    mark = _digest(config, (9, 0), "3.6.0")
    assert _digest(dataclasses.replace(config, rank=1, epoch=3, device="cuda:1"), (9, 0), "3.6.0") == mark
    assert _digest(dataclasses.replace(config, **changes), (9, 0), "3.6.0") != mark
    assert _digest(config, (9, 0), "3.9.0") != mark and _digest(config, (10, 0), "3.6.0") != mark
