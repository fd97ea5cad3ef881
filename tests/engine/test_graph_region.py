"""What is recorded never waits for the host: proved on tensors that have a device and a shape, but no values.

The whole region runs on fake CUDA tensors with the code that a GPU runs; only the launches of Triton kernels do
nothing, since their results lie in tensors that were there before. A shape that depends on a value, a value that
reaches the host, a tensor of the host among those of the device: each is an error here, as while a graph is recorded.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.fp8_checkpoint import BLOCK, CHANNEL
from benchmarks.shapes import shape_dict
from engine.drafters.draft_model import DraftModel
from engine.graphs.buckets import Bucket
from engine.graphs.inputs import StepInputs, StepOutputs
from engine.graphs.region import Drafting, StepRegion
from kernels import native
from kernels.launched import Launched
from kernels.paged_attention import allocate_kv_layer
from kernels.step import accept_drafts
from kernels.step.values import StepBefore
from model.bailing import BailingModel
from model.checkpoint import Target, load_model
from model.config import ModelConfig
from model.eagle3 import load_eagle3
from model.kv_cache import KVCache
from model.moe import MoeLayer
from router.group import GroupDispatcher
from router.placement import Placement
from scheduler.request import DraftMethod
from tests.engine.checkpoints import tiny_checkpoint
from tests.engine.drafting_engines import eagle3_folder
from tests.engine.mixed_requests import CPU, tiny
from tests.oracle.fp8_checkpoint import write_fp8
from tests.oracle.tiny_models import tiny_model

CUDA = torch.device("cuda", 0)
PAIRS = Bucket(num_sequences=3, rows_each=2)


class OnTheHost(Exception):
    """A tensor that is not on the device."""


HOST_READS = (DataDependentOutputException, DynamicOutputShapeException, OnTheHost)


class OneDevice(TorchDispatchMode):
    """Refuses every operation in which tensors of the host meet those of the device, or are brought there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operations = 0
        self.torch_kernels: list[str] = []  # operations that launch some, by name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.num_operations += 1
        found = func(*args, **(kwargs or {}))
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, found)) if isinstance(t, torch.Tensor)]
        strays = [tensor for tensor in tensors if tensor.device.type != "cuda"]
        if strays:
            raise OnTheHost(f"{func}: {[list(tensor.shape) for tensor in strays]}")
        name = func.overloadpacket.__name__
        made = torch.utils._pytree.tree_leaves(found)
        if not func.is_view and name not in _MAKE_ROOM and any(isinstance(t, torch.Tensor) and t.numel() for t in made):
            self.torch_kernels.append(name)
        return found


_MAKE_ROOM = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view"}
_SAME: dict[Any, Any] = {
    torch.Tensor.copy_: torch.ops.aten.copy_.default,
    torch.Tensor.nonzero: torch.ops.aten.nonzero.default,
    torch.Tensor.contiguous: functools.partial(torch.ops.aten.clone.default, memory_format=torch.contiguous_format),
}


class Plainly(TorchFunctionMode):
    """`tensor[...]` and some methods by the operations that they stand for: as they come they ask for a driver."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.Tensor.__getitem__:
            return _SAME.get(func, func)(*args, **(kwargs or {}))
        tensor, key = args
        axis = 0
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, torch.Tensor):
                tensor = torch.ops.aten.index.Tensor(tensor, [*[None] * axis, part])
            elif isinstance(part, int):
                tensor = tensor.select(axis, part)
                continue
            elif isinstance(part, slice):
                tensor = torch.ops.aten.slice.Tensor(tensor, axis, part.start, part.stop, part.step or 1)
            else:
                assert part is None, f"an index of {part}"
                tensor = tensor.unsqueeze(axis)
            axis += 1
        return tensor


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The Triton kernels asked for, none of which runs; the kernels chosen as on a GPU."""
    import triton.runtime.interpreter as interpreter
    import triton.runtime.jit as jit

    names: list[str] = []

    def launched(self: Any, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: names.append(self.fn.__name__)

    monkeypatch.setattr(Launched, "__getitem__", lambda self, grid: launched(self.jitted, grid))
    monkeypatch.setattr(interpreter.InterpretedFunction, "__getitem__", launched)
    monkeypatch.setattr(jit.JITFunction, "__getitem__", launched)
    yield names
    native.use("auto")


def moved(value: Any, mode: FakeTensorMode) -> Any:
    """A copy in which every tensor is a fake one on the device."""
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value).to(CUDA)
    if isinstance(value, tuple | list):
        return type(value)(moved(item, mode) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(twin, field.name, moved(getattr(value, field.name), mode))
        return twin
    if type(value).__module__.split(".")[0] in ("experts", "router") and hasattr(value, "__dict__"):
        twin = copy.copy(value)
        twin.__dict__.update({name: moved(part, mode) for name, part in vars(value).items()})
        return twin
    return value


def on_device(
    model: BailingModel, draft_model: DraftModel | None, mode: FakeTensorMode, bucket: Bucket, dtype: torch.dtype
) -> StepRegion:
    """The region of a bucket, on fake tensors."""
    num_blocks, block_size, max_drafts = 9, 4, 3
    kv = KVCache(model.config, num_blocks, block_size, dtype, CUDA)
    drafting = None
    if draft_model is not None:
        layer = allocate_kv_layer(num_blocks, block_size, draft_model.num_kv_heads, draft_model.head_dim, dtype, CUDA)
        drafting = Drafting(model=moved(draft_model, mode), kv=layer)

    def buffers(layout: Any) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(shape, dtype=kind, device=CUDA) for name, (kind, shape) in layout.items()}

    return StepRegion(
        model=moved(model, mode),
        kv=kv,
        drafting=drafting,
        scratch_slot=(num_blocks - 1) * block_size,
        bucket=bucket,
        inputs=StepInputs(**buffers(StepInputs.layout(bucket, num_blocks, max_drafts))),
        outputs=StepOutputs(**buffers(StepOutputs.layout(bucket, max_drafts))),
        before=StepBefore.of(5, max_drafts, CUDA),
    )


def run(region: StepRegion) -> None:
    """Everything that is recorded of a step."""
    verified = region.verify()
    if region.drafting is not None:
        region.draft(region.extend(verified))


@contextmanager
def nothing_but_the_device() -> Iterator[tuple[FakeTensorMode, OneDevice]]:
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, torch.inference_mode(), Plainly():
        yield mode, OneDevice()


def loaded(method: DraftMethod) -> tuple[BailingModel, DraftModel | None]:
    """A model whose weights lie as on a GPU."""
    native.use("torch")
    tiny.cache_clear()
    model = tiny("C")
    tiny.cache_clear()
    head = None
    if method is DraftMethod.EAGLE3:
        head = load_eagle3(eagle3_folder("C"), model.config, model.embedding, torch.float32, CPU)
    native.use("auto")
    return model, model.mtp if method is DraftMethod.MTP else head


@pytest.mark.parametrize("rows_each", [1, 4, 9])
@pytest.mark.parametrize("method", [DraftMethod.NONE, DraftMethod.EAGLE3, DraftMethod.MTP])
def test_no_value_reaches_the_host(launches: list[str], method: DraftMethod, rows_each: int) -> None:
    model, draft_model = loaded(method)
    with nothing_but_the_device() as (mode, device):
        region = on_device(model, draft_model, mode, Bucket(num_sequences=3, rows_each=rows_each), torch.float32)
        with device:
            run(region)
    assert device.num_operations > 100
    wanted = {"split_kernel", "choose_kernel", "compare_kernel", "down_kernel", "draw_kernel", "accept_kernel"}
    assert wanted <= set(launches)
    assert "answers_norm_kernel" in launches and "combine_kernel" not in launches, "a step has few rows"
    assert ("chunk_kernel" in launches) == (rows_each > 8), "the rows of a sequence bound what is launched for it"


def test_a_row_alone_is_chosen_for_and_sorted_by_one_kernel(launches: list[str]) -> None:
    model, _ = loaded(DraftMethod.NONE)
    with nothing_but_the_device() as (mode, device):
        region = on_device(model, None, mode, Bucket(num_sequences=1, rows_each=1), torch.float32)
        with device:
            run(region)
    assert launches.count("ordered_choice_kernel") == model.config.num_moe_layers > 0
    assert not {"choose_kernel", "compare_kernel", "tile_map_kernel", "combine_kernel"} & set(launches)


@pytest.mark.parametrize("bucket", [Bucket(num_sequences=1, rows_each=1), Bucket(num_sequences=3, rows_each=4)])
def test_a_step_without_drafts_has_one_torch_kernel(launches: list[str], bucket: Bucket) -> None:
    """The embedding's; and one of Triton's before the forward pass, four that choose tokens, and one behind them."""
    model, _ = loaded(DraftMethod.NONE)
    with nothing_but_the_device() as (mode, device):
        region = on_device(model, None, mode, bucket, torch.float32)
        with device:
            run(region)
    assert device.torch_kernels == ["index_select"]
    assert launches[0] == "rows_behind_kernel"
    assert launches[-5:] == ["best_kernel", "weigh_kernel", "gather_kernel", "draw_kernel", "accept_kernel"]


def test_drafts_add_two_kernels_to_a_pass_of_the_head(launches: list[str]) -> None:
    """Torch's are the head's own: its embedding, two halves side by side, a sum; the rows behind drafts, and a copy."""
    model, head = loaded(DraftMethod.EAGLE3)
    with nothing_but_the_device() as (mode, device):
        region = on_device(model, head, mode, Bucket(num_sequences=3, rows_each=4), torch.float32)
        verified = region.verify()
        launches.clear()
        with device:
            chain = region.extend(verified)
        assert device.torch_kernels == ["index_select", "cat", "add_", "index_select"]
        assert launches.pop() == "draft_kernel"
        in_a_pass = launches.copy()
        launches.clear()
        device.torch_kernels.clear()
        with device:
            region.draft(chain)
    assert device.torch_kernels == ["index_select", "cat", "add_", "copy_"]
    assert launches == ["draft_rows_kernel", *in_a_pass[1:], "draft_kernel"], "what fuses the states is in the first"


@pytest.mark.parametrize(
    ("bucket", "product"), [(Bucket(num_sequences=1, rows_each=1), "vector_kernel"), (PAIRS, "split_kernel")]
)
@pytest.mark.parametrize("quantization", [BLOCK, CHANNEL], ids=["block", "channel"])
def test_nor_with_fp8_weights(
    launches: list[str], tmp_path: Path, quantization: dict[str, Any], bucket: Bucket, product: str
) -> None:
    """Wide enough for the products of a decode, of one row and of several."""
    wide = {"hidden_size": 1024, "num_attention_heads": 16, "head_dim": 64, "num_hidden_layers": 2}
    source = tiny_model(shape_dict("F") | wide, tmp_path / "plain")
    native.use("triton")
    model = write_fp8(source, tmp_path / "fp8", quantization)[0].load()
    native.use("auto")
    with nothing_but_the_device() as (mode, device):
        region = on_device(model, None, mode, bucket, torch.float32)
        with device:
            run(region)
    # Attention's output and the inner rows of experts are quantised by themselves, what enters attention by its norm.
    before = [launches[at - 2 : at] for at, name in enumerate(launches) if name == "qk_norm_rope_kv_kernel"]
    assert before == [["rms_norm_kernel", product]] * len(model.layers)


def test_nor_with_experts_on_other_ranks(launches: list[str]) -> None:
    """Both collectives of a layer have shapes that the bucket alone decides. The group is one that sends nothing."""
    native.use("torch")
    folder = tiny_checkpoint("C")
    config = ModelConfig.from_dir(folder)
    placement = Placement.even(config.num_experts, 4)
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    try:
        group = dist.group.WORLD
        assert group is not None
        dispatcher = GroupDispatcher(placement, 1, group, CPU)
        target = Target(dtype=torch.float32, device=CPU, placement=placement, rank=1)
        model = load_model(folder, config, target=target, dispatcher=dispatcher)
        native.use("auto")
        with nothing_but_the_device() as (mode, device):
            region = on_device(model, model.mtp, mode, PAIRS, torch.float32)
            with device:
                run(region)
    finally:
        dist.destroy_process_group()
    last = region.model.layers[-1].ffn
    assert isinstance(last, MoeLayer) and isinstance(last.dispatcher, GroupDispatcher)
    assert last.dispatcher._fixed._collectives.total == 2 and "compare_kernel" in launches


LOOKS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda behind: behind.sum().item(),
    "tolist": lambda behind: behind.tolist(),
    "nonzero": lambda behind: behind.nonzero(),
    "mask": lambda behind: torch.ops.aten.masked_select(behind, behind > 0),
    "host": lambda behind: behind.cpu(),
    "if": lambda behind: bool(behind.any()),
    "from the host": lambda behind: behind + torch.tensor([1, 2, 3]).to(CUDA),
    "repeat": lambda behind: behind.repeat_interleave(behind),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_at_a_value_is_noticed(launches: list[str], monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    """Else the tests above would prove nothing."""

    def looking(*given: Any) -> torch.Tensor:
        behind = accept_drafts(*given)
        LOOKS[look](behind)
        return behind

    monkeypatch.setattr("engine.graphs.region.accept_drafts", looking)
    model, _ = loaded(DraftMethod.NONE)
    with nothing_but_the_device() as (mode, device):
        region = on_device(model, None, mode, PAIRS, torch.float32)
        with pytest.raises(HOST_READS), device:
            run(region)
