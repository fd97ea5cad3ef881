"""Batch-invariant kernels: to the last bit a row comes out the same whatever rows are beside it.

Triton's kernels are meant; what the native kernels promise anyway is in each operation's own tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pkgutil import resolve_name

import pytest
import torch

from kernels import native
from kernels.gate import sigmoid_group_topk
from kernels.grouped_swiglu import PackedExperts, grouped_swiglu, pack_experts
from kernels.linear import PackedWeight, linear_fp32_out, pack_fp8_weight, pack_weight
from kernels.paged_attention import (
    WHOLE_CONTEXT,
    KVLayer,
    allocate_kv_layer,
    paged_attention,
    paged_attention_quantised,
)
from kernels.quantise import quantise_blocks
from kernels.quantise.formats import Scaling

from .conftest import running
from .test_gate import SMALL
from .test_grouped_swiglu import fp8_experts, weights
from .test_linear import fp8_weight
from .test_paged_attention import exact_over_cache, scattered

KINDS = [Scaling.NONE, Scaling.BLOCKS, Scaling.CHANNELS]


@pytest.fixture
def invariant() -> Iterator[None]:
    for _ in running("triton"):
        native.use("triton", batch_invariant=True)
        yield


@pytest.fixture
def varying() -> Iterator[None]:
    yield from (None for _ in running("triton"))


def packed_weight(draw: torch.Generator, kind: Scaling) -> PackedWeight:
    if kind is Scaling.NONE:
        return pack_weight(torch.randn(70, 300, generator=draw))
    return pack_fp8_weight(*fp8_weight(draw, 70, 300, kind), torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_product(invariant: None, draw: torch.Generator, kind: Scaling) -> None:
    weight = packed_weight(draw, kind)
    x = torch.randn(150, 300, generator=draw)
    whole = linear_fp32_out(x, weight)
    for rows in (slice(0, 1), slice(5, 45), slice(17, 90), slice(149, 150)):
        assert torch.equal(linear_fp32_out(x[rows].contiguous(), weight), whole[rows])


def test_k_is_not_split_for_few_rows(invariant: None, draw: torch.Generator) -> None:
    weight = pack_fp8_weight(*fp8_weight(draw, 64, 1024, Scaling.BLOCKS), torch.float32)
    x = torch.randn(65, 1024, generator=draw)
    assert torch.equal(linear_fp32_out(x[:1].contiguous(), weight), linear_fp32_out(x, weight)[:1])


def packed_experts(draw: torch.Generator, kind: Scaling) -> PackedExperts:
    if kind is Scaling.NONE:
        return pack_experts(*weights(draw, 3, 160, 96, torch.float32))
    return fp8_experts(draw, 3, 160, 96, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_an_expert(invariant: None, draw: torch.Generator, kind: Scaling) -> None:
    experts = packed_experts(draw, kind)
    rows = torch.randn(140, 160, generator=draw)
    whole = grouped_swiglu(rows, torch.tensor([9, 120, 11], dtype=torch.int32), experts)
    for mine in (slice(9, 10), slice(20, 39), slice(60, 129)):
        counts = torch.tensor([0, mine.stop - mine.start, 0], dtype=torch.int32)
        assert torch.equal(grouped_swiglu(rows[mine].contiguous(), counts, experts), whole[mine])


def test_rows_of_the_gate(invariant: None, draw: torch.Generator, dtype: torch.dtype) -> None:
    packed, bias = pack_weight(torch.randn(16, 72, generator=draw)), 0.3 * torch.randn(16, generator=draw)
    hidden = torch.randn(70, 72, generator=draw).to(dtype)
    whole = sigmoid_group_topk(hidden, packed, bias, SMALL)
    for rows in (slice(0, 1), slice(60, 65)):
        for all_of_them, some in zip(whole, sigmoid_group_topk(hidden[rows], packed, bias, SMALL), strict=True):
            assert torch.equal(all_of_them[rows], some)


def test_tiles_do_not_follow_the_number_of_rows(
    invariant: None, draw: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the interpreter tiles of any size add alike, so the bits above cannot tell; on a device they may not."""
    chosen: dict[str, list[object]] = {}
    for module, name in (
        ("kernels.linear.triton_kernel", "linear_tile"),
        ("kernels.grouped_swiglu.triton_kernel", "gate_up_tile"),
        ("kernels.grouped_swiglu.triton_kernel", "down_tile"),
        ("kernels.gate.logits", "logits_constants"),
    ):
        choose = watched(resolve_name(f"{module}:{name}"), chosen.setdefault(name, []))
        monkeypatch.setattr(f"{module}.{name}", choose)
    weight, router = (pack_weight(torch.randn(16, 32, generator=draw)) for _ in range(2))
    experts = pack_experts(*weights(draw, 1, 32, 16, torch.float32))
    for num_rows in (1, 20, 70):
        x = torch.randn(num_rows, 32, generator=draw)
        linear_fp32_out(x, weight)
        sigmoid_group_topk(x, router, torch.zeros(16), SMALL)
        grouped_swiglu(x, torch.tensor([num_rows], dtype=torch.int32), experts)
    for place, choices in chosen.items():
        assert len(choices) == 3 and all(choice == choices[0] for choice in choices), (place, choices)


def watched(choose: Callable[..., object], choices: list[object]) -> Callable[..., object]:
    """The function itself, which writes down what it says."""

    def call(*arguments: object) -> object:
        choices.append(choose(*arguments))
        return choices[-1]

    return call


class Contexts:
    """Sequences with random queries at every position and a cache that holds all of their keys and values."""

    def __init__(self, draw: torch.Generator, lengths: list[int], cache: torch.dtype) -> None:
        self.kv: KVLayer = allocate_kv_layer(sum(-(-n // 16) for n in lengths), 16, 2, 32, cache, draw.device)
        if self.kv.key_scale is not None and self.kv.value_scale is not None:
            self.kv.key_scale.copy_(torch.tensor([0.5, 1.25]))
            self.kv.value_scale.copy_(torch.tensor([1.5, 0.75]))
        self.tables = scattered(draw, lengths, self.kv)
        self.queries = [torch.randn(n, 8, 32, generator=draw) for n in lengths]

    def attend(self, parts: list[tuple[int, int, int]], window: int = WHOLE_CONTEXT) -> list[torch.Tensor]:
        """Rows [start, stop) of each of some sequences in one batch; the result of each."""
        lengths = [stop - start for _, start, stop in parts]
        out = paged_attention(
            torch.cat([self.queries[sequence][start:stop] for sequence, start, stop in parts]),
            self.kv,
            self.tables[[sequence for sequence, *_ in parts]].contiguous(),
            torch.tensor([0, *lengths]).cumsum(0).int(),
            torch.tensor([stop for *_, stop in parts], dtype=torch.int32),
            torch.cat([torch.arange(start, stop, dtype=torch.int32) for _, start, stop in parts]),
            *(32**-0.5, window),
        )
        return list(out.split(lengths))


@pytest.mark.parametrize(("cache", "window"), [(torch.float32, WHOLE_CONTEXT), (torch.float8_e4m3fn, 20)])
def test_rows_of_attention(
    invariant: None, draw: torch.Generator, monkeypatch: pytest.MonkeyPatch, cache: torch.dtype, window: int
) -> None:
    """A chunk across the edge of two splits, in smaller chunks, as verifications, as decodes, beside others."""
    monkeypatch.setattr("kernels.paged_attention.invariant.INVARIANT_SPLIT", 64)  # the interpreter is slow
    world = Contexts(draw, [90, 20], cache)
    first, last = 57, 74
    whole = world.attend([(0, first, last)], window)[0]
    truth = exact_over_cache(world.queries[0][first:last], world.kv, world.tables[0], first, last, window)
    torch.testing.assert_close(whole.double(), truth, rtol=3e-3, atol=3e-3)
    for start, stop in ((62, 67), (64, 65), (65, 74)):
        beside = [(1, 15, 20), (0, start, stop)]
        assert torch.equal(world.attend(beside, window)[1], whole[start - first : stop - first]), (start, stop)


def test_scratch_memory_that_runs_out_changes_nothing(
    invariant: None, draw: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Contexts(draw, [30, 20], torch.float32)
    parts = [(0, 21, 30), (1, 19, 20), (1, 0, 3)]
    roomy = world.attend(parts)
    monkeypatch.setattr("kernels.paged_attention.invariant.tiles_at_once", lambda *_: 2)
    assert all(torch.equal(a, b) for a, b in zip(world.attend(parts), roomy, strict=True))


def test_results_in_fp8_are_the_quantised_results(
    invariant: None, draw: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.paged_attention.invariant.INVARIANT_SPLIT", 64)
    kv = allocate_kv_layer(6, 16, 1, 128, torch.float32, draw.device)
    contexts = torch.tensor([70, 6], dtype=torch.int32)
    tables = scattered(draw, contexts.tolist(), kv)
    query = torch.randn(8, 3, 128, generator=draw)
    positions = torch.tensor([*range(64, 70), 4, 5], dtype=torch.int32)
    arguments = (query, kv, tables, torch.tensor([0, 6, 8], dtype=torch.int32), contexts, positions, 0.1)
    for ours, expected in zip(
        paged_attention_quantised(*arguments), quantise_blocks(paged_attention(*arguments)), strict=True
    ):
        assert torch.equal(ours.float(), expected.float())


def test_attention_varies_where_nothing_is_promised(varying: None, draw: torch.Generator) -> None:
    """Otherwise the tests above would prove nothing: chunks and decodes add in different orders."""
    world = Contexts(draw, [400], torch.float32)
    chunk, decode = world.attend([(0, 380, 400)])[0], world.attend([(0, 399, 400)])[0]
    torch.testing.assert_close(chunk[-1:], decode)
    assert not torch.equal(chunk[-1:], decode)


def test_the_torch_kernels_do_not_promise_it() -> None:
    try:
        native.use("torch", batch_invariant=True)
        with pytest.raises(ValueError, match=r"engine\.batch_invariant: the torch kernels"):
            native.demand_batch_invariance(torch.device("cpu"))
        native.use("native", batch_invariant=True)
        native.demand_batch_invariance(torch.device("cpu"))
        assert "amx" not in native.backend()
    finally:
        native.use("auto")
