"""Building the native library: once, safely, and with a way out."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

from kernels import native
from kernels.linear import Layout, pack_weight

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources with nothing built yet."""
    copy = tmp_path / "native"
    shutil.copytree(native.SOURCES, copy, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    monkeypatch.setattr(native, "SOURCES", copy)
    return copy


def test_processes_that_start_at_once_build_once(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    code = "from kernels import native; print(native.build())"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {process.communicate()[0].strip() for process in started}
    assert [process.returncode for process in started] == [0, 0]
    assert len(paths) == 1 and Path(paths.pop()).exists()
    assert not list(tmp_path.rglob("*.part"))


def test_changed_sources_are_another_library(sources: Path) -> None:
    first = native.build()
    (sources / "linear.c").write_text((sources / "linear.c").read_text() + "\n// changed\n")
    assert native.build() != first


def test_without_a_compiler_torch_runs_and_one_warning_says_so(
    sources: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (sources / "linear.c").write_text("this is not C")
    with caplog.at_level(logging.WARNING):
        native.use("auto")
        try:
            assert native.backend() == "torch" and native.library() is None
            assert pack_weight(torch.ones(2, 2)).layout is Layout.PLAIN
            assert len(caplog.records) == 1 and "fallback=torch" in caplog.text
            with pytest.raises(native.BuildError, match=r"linear\.c"):
                native.use("native")
        finally:
            monkeypatch.undo()
            native.use("auto")


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="'cuda' is not one of auto, native, torch, triton"):
        native.use("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton runs here")
def test_triton_is_refused_where_nothing_can_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="needs a CUDA device, or a process started with TRITON_INTERPRET=1"):
        native.use("triton")
    assert native.backend() != "triton"


@pytest.mark.parametrize("target", ["x86-64", "skylake-avx512", "cooperlake", "sapphirerapids"])
def test_sources_compile_for_every_generation_without_a_warning(target: str, tmp_path: Path) -> None:
    flags = [flag for flag in native.FLAGS if not flag.startswith("-march")]
    sources = [str(path) for path in sorted(native.SOURCES.glob("*.c"))]
    command = [
        "gcc",
        *flags,
        f"-march={target}",
        "-Wall",
        "-Wextra",
        "-Werror",
        *sources,
        "-o",
        str(tmp_path / "k.so"),
        "-lm",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
