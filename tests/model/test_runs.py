"""Runs: which tensors are read as one, and that each is found in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from benchmarks.random_checkpoint import write_checkpoint
from benchmarks.shapes import shape_dict
from model.config import ModelConfig
from model.landing import DirectLanding
from model.read_ahead import ReadAhead, ReadPlan
from model.runs import Run, runs_of
from model.safetensors_files import SafetensorsFiles, StoredTensor
from model.tensor_check import needed_tensors

FP8, FP32 = torch.float8_e4m3fn, torch.float32


def layout(*sizes: tuple[str, int], file: str = "a", dtype: torch.dtype = FP8) -> dict[str, StoredTensor]:
    """Tensors of one file, back to back."""
    found, offset = {}, 100
    for name, size in sizes:
        found[name] = StoredTensor(Path(file), dtype, (size,), offset)
        offset += found[name].num_bytes
    return found


def grouped(names: Sequence[str], stored: dict[str, StoredTensor], most_bytes: int) -> list[str]:
    runs = runs_of(names, stored, most_bytes)
    check(runs, stored)
    return ["".join(run.names) for run in runs]


def check(runs: Sequence[Run], stored: dict[str, StoredTensor]) -> None:
    for run in runs:
        tensors = [stored[name] for name in run.names]
        assert {tensor.file for tensor in tensors} == {run.file}, "a run is of one file"
        assert run.start == tensors[0].offset
        assert run.num_bytes == sum(tensor.num_bytes for tensor in tensors)
        for left, right in pairwise(tensors):
            assert left.offset + left.num_bytes == right.offset, "a run holds no byte that is not wanted"


def test_neighbours_are_one_run_up_to_its_size() -> None:
    stored = layout(("a", 10), ("b", 10), ("c", 10), ("d", 50), ("e", 10))
    assert grouped("abcde", stored, 30) == ["abc", "d", "e"]
    assert grouped("abcde", stored, 29) == ["ab", "c", "d", "e"]
    assert grouped("abde", stored, 70) == ["ab", "de"], "what is not wanted is not read"
    assert grouped("cba", stored, 100) == ["c", "b", "a"], "they lie the other way round"


def test_two_runs_may_grow_side_by_side() -> None:
    """Weights and their scales, each kind together in the file."""
    stored = layout(("a", 10), ("b", 10), ("x", 1), ("y", 1))
    assert grouped("axby", stored, 30) == ["ab", "xy"]


def test_a_run_ends_with_its_file() -> None:
    first, second = layout(("a", 10)), layout(("c", 5), file="b")
    second["b"] = StoredTensor(Path("b"), FP8, (10,), first["a"].offset + 10)
    assert grouped("abc", first | second, 100) == ["a", "b", "c"]


def test_a_tensor_lies_where_its_numbers_may() -> None:
    stored = layout(("a", 3), ("b", 1))
    stored["c"] = StoredTensor(Path("a"), FP32, (1,), 104)
    assert grouped("abc", stored, 100) == ["abc"]
    stored["c"] = StoredTensor(Path("a"), FP32, (1,), 103)
    assert grouped("ac", stored, 100) == ["a", "c"], "no fp32 number begins at byte 3"


def test_what_is_wanted_much_later_joins_only_a_small_run() -> None:
    """Scales of a layer do; a neighbour of another layer would lie in memory all the while."""
    stored = layout(("a", 10), ("b", 10), ("c", 1), ("d", 1)) | layout(("z", 500), file="z")
    assert grouped("azb", stored, 100) == ["a", "z", "b"]
    assert grouped("czd", stored, 100) == ["cd", "z"]


def test_experts_come_as_they_lie(tmp_path: Path) -> None:
    """Names are sorted as strings in files: 0, 1, 10, 100, ...; and each file has its part of a layer."""
    write_checkpoint(tmp_path, shape_dict("H"), torch.bfloat16, num_shards=3)
    config = ModelConfig.from_dir(tmp_path)
    with SafetensorsFiles(tmp_path) as files:
        names = needed_tensors(files.tensors, config, range(config.num_experts))
        assert sorted(names) == sorted(files.tensors)
        most_bytes = 2**20
        runs = runs_of(names, files.tensors, most_bytes)
        check(runs, files.tensors)
        num_bytes = sum(run.num_bytes for run in runs)
        assert num_bytes == sum(stored.num_bytes for stored in files.tensors.values())
        large = [run for run in runs if run.num_bytes > most_bytes / 2]
        assert sum(run.num_bytes for run in large) > 0.9 * num_bytes, "reads are large ones"


SHAPES: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
    "scalar": ((), torch.float32),
    "none": ((0, 5), torch.float32),
    "odd": ((3, 5), torch.uint8),
    "norm": ((7,), torch.bfloat16),
    "large": ((90, 40), torch.float32),
    "left": ((8, 8), FP8),
    "right": ((8, 8), FP8),
    "scale": ((2, 2), torch.float32),
}


@pytest.fixture(scope="module")
def two_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each of SHAPES twice, in two files."""
    folder = tmp_path_factory.mktemp("two_files")
    generator = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    for file in ("a", "b"):
        tensors: dict[str, torch.Tensor] = {}
        for name, (shape, dtype) in SHAPES.items():
            count = torch.empty(shape, dtype=dtype).nbytes
            numbers = torch.randint(0, 100, (count,), dtype=torch.uint8, generator=generator)
            tensors[f"{file}.{name}"] = numbers.view(dtype).view(shape)
        save_file(tensors, folder / f"{file}.safetensors")
        index |= dict.fromkeys(tensors, f"{file}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_any_tensors_gives_each_as_it_is_stored(two_files: Path, data: st.DataObject) -> None:
    """Wanted in one order, taken in another, through a window of any size; and no byte more is read."""
    with SafetensorsFiles(two_files) as files:
        by_place = sorted(files.tensors, key=lambda name: files.tensors[name].place)
        chosen = data.draw(st.sets(st.sampled_from(by_place), min_size=1))
        names = data.draw(st.permutations([name for name in by_place if name in chosen]))
        plan = ReadPlan(
            num_readers=2,
            piece_bytes=data.draw(st.sampled_from([100, 5000])),
            run_bytes=data.draw(st.sampled_from([1, 64, 400, 20_000])),
            window_bytes=data.draw(st.sampled_from([1, 500, 100_000])),
        )
        with ReadAhead(files, names, DirectLanding(), plan) as tensors:
            taken = {name: tensors.take(name) for name in data.draw(st.permutations(names))}
        assert files.bytes_read == tensors.total_bytes == sum(tensor.nbytes for tensor in taken.values())
        for name, tensor in taken.items():
            stored = files.read(name)
            assert (tensor.shape, tensor.dtype) == (stored.shape, stored.dtype)
            assert torch.equal(tensor.view(-1).view(torch.uint8), stored.view(-1).view(torch.uint8)), name
