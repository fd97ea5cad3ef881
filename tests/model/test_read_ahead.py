"""Reading ahead: every byte as it is stored, in bounded memory, and nothing left behind however it ends."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fp8_checkpoint import BLOCK
from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.shapes import shape_dict
from kernels import native
from model.checkpoint import Target, WeightReader, build_model, load_model
from model.errors import CheckpointError
from model.landing import DirectLanding, Fill, Landing, StagedLanding
from model.read_ahead import ReadAhead, ReadPlan
from model.safetensors_files import SafetensorsFiles
from model.tensor_check import needed_tensors
from router.local import LocalDispatcher
from router.placement import Placement
from tests.oracle.fp8_checkpoint import write_fp8
from tests.oracle.tiny_models import CPU, TinyModel, tiny_model

Tiny = Callable[[str], TinyModel]
PLAN = ReadPlan(num_readers=3, piece_bytes=1000, run_bytes=2500, window_bytes=20_000)
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
    """Knows how many bytes are alive of the room that it gave, and at most were."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finaliser may run anywhere
        self.held_bytes, self.most_bytes = 0, 0

    def allocate(self, num_bytes: int) -> torch.Tensor:
        memory = np.empty(num_bytes, dtype=np.uint8)
        self._count(num_bytes)
        weakref.finalize(memory, self._count, -num_bytes)  # once the last tensor that lies in it is gone
        return torch.from_numpy(memory)

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self.held_bytes += num_bytes
            self.most_bytes = max(self.most_bytes, self.held_bytes)


def test_a_model_is_built_in_the_order_of_reading_within_the_window(tmp_path: Path) -> None:
    """Otherwise more than the window would lie in memory; an MTP layer and a shared head included.

    Experts lie in the file as strings are sorted, 0, 1, 10, 11, ..., 19, 2. Beyond the window are what was begun while
    there was room, and what is just being laid out: the dense layer's at most.
    """
    world, landing = tiny_model(shape_dict("C") | {"num_experts": 32}, tmp_path), Counting()
    config, itemsize = world.config, 4
    ffn_bytes = 3 * config.hidden_size * config.intermediate_size * itemsize
    expert_bytes = 3 * config.hidden_size * config.moe_intermediate_size * itemsize
    plan = ReadPlan(num_readers=2, run_bytes=expert_bytes, window_bytes=2 * expert_bytes)
    target = Target(dtype=torch.float32, device=CPU, placement=Placement.even(config.num_experts, 1), rank=0)
    with SafetensorsFiles(world.folder) as files:
        names = needed_tensors(files.tensors, config, target.local_experts)
        with ReadAhead(files, names, landing, plan) as tensors:
            weights = WeightReader(tensors, config, target)
            model = build_model(weights, config, target=target, dispatcher=LocalDispatcher(config.num_experts))
    kept = model.embedding.nbytes  # alone in its memory, as a few norms are
    assert kept <= landing.held_bytes < 1.02 * kept
    assert ffn_bytes <= landing.most_bytes - kept <= plan.window_bytes + plan.run_bytes + ffn_bytes


def test_what_a_model_keeps_holds_nothing_that_was_read_with_it(tmp_path: Path) -> None:
    """A norm would otherwise keep the experts beside it. In FP8, with the kernels that keep it."""
    world, _ = write_fp8(tiny_model("C", tmp_path), tmp_path / "fp8", BLOCK)
    native.use("triton")
    try:
        tensors = list(tensors_of(world.load(torch.bfloat16)))
    finally:
        native.use("auto")
    assert {tensor.dtype for tensor in tensors} >= {torch.float8_e4m3fn, torch.bfloat16, torch.float32}
    for tensor in tensors:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, f"{tensor.dtype} {list(tensor.shape)}"


def tensors_of(holder: object) -> Iterator[torch.Tensor]:
    """All tensors that an object of ours is made of."""
    if isinstance(holder, torch.Tensor):
        yield holder
    elif isinstance(holder, list | tuple):
        for part in holder:
            yield from tensors_of(part)
    elif type(holder).__module__.split(".")[0] in ("model", "experts", "router", "kernels"):
        names = getattr(holder, "__slots__", ()) or vars(holder)
        for name in names:
            yield from tensors_of(getattr(holder, name))


def test_a_reader_that_waits_keeps_no_memory(tiny: Tiny) -> None:
    """What was taken and dropped is gone, though who read it read nothing since."""
    landing = Counting()
    names = ["model.word_embeddings.weight", "lm_head.weight", "model.norm.weight"]
    with SafetensorsFiles(tiny("C").folder) as files:
        first, second = (files.tensors[name].num_bytes for name in names[:2])
        with ReadAhead(files, names, landing, ReadPlan(num_readers=2, window_bytes=1)) as tensors:
            tensors.take(names[0])  # by one reader; the other, which has waited longer, goes on
            deadline_s = time.monotonic() + 10
            while files.bytes_read < first + second or landing.held_bytes > second:
                assert time.monotonic() < deadline_s, f"{landing.held_bytes} bytes are held, not {second}"
                time.sleep(0.001)


@pytest.mark.parametrize("plan", [PLAN, replace(PLAN, piece_bytes=2**30, run_bytes=2**30)], ids=["pieces", "one run"])
def test_a_file_that_ends_too_early_is_named_with_the_tensor(tmp_path: Path, plan: ReadPlan) -> None:
    write_checkpoint(tmp_path, shape_dict("A"), torch.float32)
    before = leftovers()
    with SafetensorsFiles(tmp_path) as files:
        names = sorted(files.tensors, key=lambda name: files.tensors[name].offset)
        files.read(names[0])  # from here on the file is open
        os.truncate(tmp_path / "model.safetensors", files.tensors[names[-1]].offset + 4)
        with (
            ReadAhead(files, names, DirectLanding(), plan) as tensors,
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
