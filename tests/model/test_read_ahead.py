"""Reading ahead: every byte as it is stored, in bounded memory, and nothing left behind however it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.shapes import shape_dict
from model.checkpoint import Target, WeightReader, build_model, load_model
from model.errors import CheckpointError
from model.landing import DirectLanding, Fill, Landing, StagedLanding
from model.read_ahead import ReadAhead, ReadPlan
from model.safetensors_files import SafetensorsFiles
from model.tensor_check import needed_tensors
from router.local import LocalDispatcher
from router.placement import Placement
from tests.oracle.tiny_models import CPU, TinyModel

Tiny = Callable[[str], TinyModel]
PLAN = ReadPlan(num_readers=3, piece_bytes=1000, window_bytes=20_000)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LANDINGS: dict[str, Callable[[], Landing]] = {
    "direct": DirectLanding,
    "staged": lambda: StagedLanding(DEVICE, 4, PLAN.piece_bytes),  # without a GPU from memory to memory
}


def leftovers() -> tuple[list[str], int]:
    """Reading threads, and open files."""
    return [t.name for t in threading.enumerate() if t.name.startswith("read-")], len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    assert not leftovers()[0]


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize("order", [list, lambda names: names[::-1]], ids=["as promised", "the other way round"])
def test_tensors_are_those_of_the_file(tiny: Tiny, landing: str, order: Callable[[list[str]], list[str]]) -> None:
    with SafetensorsFiles(tiny("C").folder) as files:
        names = list(files.tensors)
        with ReadAhead(files, names, LANDINGS[landing](), PLAN) as tensors:
            for name in order(names):
                assert torch.equal(tensors.take(name).cpu(), files.read(name)), name
        assert tensors.total_bytes == sum(stored.num_bytes for stored in files.tensors.values())
    assert not leftovers()[0]


class Counting(DirectLanding):
    """Knows how many bytes were given out and not yet taken over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.held_bytes, self.most_bytes = 0, 0

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        tensor = super().allocate(shape, dtype)
        with self._lock:
            self.held_bytes += tensor.nbytes
            self.most_bytes = max(self.most_bytes, self.held_bytes)
        return tensor

    def hand_over(self, tensor: torch.Tensor) -> None:
        with self._lock:
            self.held_bytes -= tensor.nbytes


def test_a_model_is_built_in_the_order_of_reading_within_the_window(tiny: Tiny) -> None:
    """Otherwise more than the window would lie in memory; an MTP layer and a shared head included."""
    world, landing = tiny("C"), Counting()
    target = Target(dtype=torch.float32, device=CPU, placement=Placement.even(world.config.num_experts, 1), rank=0)
    with SafetensorsFiles(world.folder) as files:
        names = needed_tensors(files.tensors, world.config, target.local_experts)
        largest = max(files.tensors[name].num_bytes for name in names)
        plan = ReadPlan(num_readers=2, piece_bytes=5000, window_bytes=2 * largest)
        with ReadAhead(files, names, landing, plan) as tensors:
            weights = WeightReader(tensors, world.config, target)
            build_model(weights, world.config, target=target, dispatcher=LocalDispatcher(world.config.num_experts))
    assert landing.held_bytes == 0, "each tensor that was read was asked for"
    assert largest <= landing.most_bytes <= plan.window_bytes + largest


def test_a_file_that_ends_too_early_is_named_with_the_tensor(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shape_dict("A"), torch.float32)
    before = leftovers()
    with SafetensorsFiles(tmp_path) as files:
        names = sorted(files.tensors, key=lambda name: files.tensors[name].offset)
        files.read(names[0])  # from here on the file is open
        os.truncate(tmp_path / "model.safetensors", files.tensors[names[-1]].offset + 4)
        with (
            ReadAhead(files, names, DirectLanding(), PLAN) as tensors,
            pytest.raises(CheckpointError, match=rf"model\.safetensors: ends inside {names[-1]}"),
        ):
            for name in names:
                tensors.take(name)
    assert leftovers() == before


def test_a_file_that_changed_since_its_header_was_read_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shape_dict("A"), torch.float32)
    with SafetensorsFiles(tmp_path) as files:
        with (tmp_path / "model.safetensors").open("ab") as stream:
            stream.write(b"more")
        with pytest.raises(CheckpointError, match=r"model\.safetensors: [\d,]+ bytes, [\d,]+ when its header was read"):
            files.read("model.norm.weight")


class Failing(DirectLanding):
    """A device whose third copy fails."""

    def __init__(self) -> None:
        self._writes = 0

    def write(self, part: torch.Tensor, fill: Fill) -> None:
        self._writes += 1
        if self._writes == 3:
            raise RuntimeError("out of memory on the device")
        super().write(part, fill)


def test_what_fails_in_a_reader_reaches_who_waits(tiny: Tiny) -> None:
    with SafetensorsFiles(tiny("A").folder) as files:
        names = list(files.tensors)
        with (
            ReadAhead(files, names, Failing(), PLAN) as tensors,
            pytest.raises(RuntimeError, match="out of memory on the device"),
        ):
            for name in names:
                tensors.take(name)
    assert not leftovers()[0]


@pytest.mark.parametrize("landing", LANDINGS)
def test_giving_up_half_way_leaves_nothing_behind(tiny: Tiny, landing: str) -> None:
    before = leftovers()
    with pytest.raises(KeyboardInterrupt), SafetensorsFiles(tiny("B").folder) as files:
        names = list(files.tensors)
        with ReadAhead(files, names, LANDINGS[landing](), PLAN) as tensors:
            tensors.take(names[0])
            raise KeyboardInterrupt
    assert leftovers() == before


def test_loading_that_is_interrupted_leaves_nothing_behind(tiny: Tiny) -> None:
    world, before = tiny("B"), leftovers()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    target = Target(dtype=torch.float32, device=CPU, placement=Placement.even(world.config.num_experts, 1), rank=0)
    dispatcher = LocalDispatcher(world.config.num_experts)
    with pytest.raises(KeyboardInterrupt):
        load_model(
            world.folder,
            world.config,
            target=target,
            dispatcher=dispatcher,
            on_progress=interrupt,
        )
    assert leftovers() == before
