"""The experts of one rank: a grouped GEMM for gate and up, SwiGLU, a grouped GEMM for down, in one call.

Bytes: 3 * H * I weights of each expert that has rows; FLOP: 6 * R * H * I.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels import native
from kernels.grouped_swiglu import cpu, reference
from kernels.linear import Fp8Rows
from kernels.permute import RowOrder
from kernels.quantise.formats import FP8_BLOCK, Scaling

MOST_COUNTED_ROWS = 32  # whose groups of channels may be counted: the experts of one token
Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # of one expert: gate, up, down


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedExperts:
    """The weights of E experts of hidden width H and inner width I.

    In panels: `gate_up` and `down` are [E, bytes] uint8. Plain: `gate_up` is [E, 2, I, H], `down` is [E, H, I], of
    `dtype`, or e4m3 with fp32 `scales`: [E, 2, N, K] and [E, N, K] as `Scaling.weight_shape` says.
    """

    gate_up: torch.Tensor
    down: torch.Tensor
    num_experts: int
    hidden: int
    inner: int
    dtype: torch.dtype  # of the rows
    is_plain: bool
    scales: tuple[torch.Tensor, torch.Tensor] | None = None
    arrivals: torch.Tensor | None = None  # int32, of FP8, zeros between products: two streams may not multiply at once

    @property
    def scaling(self) -> Scaling:
        """The format that rows are quantised to; of no experts, none."""
        if self.scales is None or not self.num_experts:
            return Scaling.NONE
        return Scaling.of(self.down[0], self.scales[1][0])

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""
        return self.gate_up.nbytes + self.down.nbytes + sum(scale.nbytes for scale in self.scales or ())


def allocate_experts(
    num_experts: int, hidden: int, inner: int, dtype: torch.dtype, device: torch.device | None = None
) -> PackedExperts:
    """Room for the experts, to be filled one by one, so that loading never holds two copies."""
    is_plain = native.library() is None or (device is not None and device.type != "cpu")
    if is_plain:
        gate_up = torch.empty(num_experts, 2, inner, hidden, dtype=dtype, device=device)
        down = torch.empty(num_experts, hidden, inner, dtype=dtype, device=device)
    else:
        gate_up, down = cpu.allocate(num_experts, hidden, inner, dtype)
    return PackedExperts(
        gate_up=gate_up, down=down, num_experts=num_experts, hidden=hidden, inner=inner, dtype=dtype, is_plain=is_plain
    )


def allocate_fp8_experts(
    num_experts: int, hidden: int, inner: int, dtype: torch.dtype, scaling: Scaling, device: torch.device | None = None
) -> PackedExperts:
    """Room for FP8 experts that take rows of `dtype`, to be filled one by one."""
    gate_up = torch.empty(num_experts, 2, inner, hidden, dtype=torch.float8_e4m3fn, device=device)
    down = torch.empty(num_experts, hidden, inner, dtype=torch.float8_e4m3fn, device=device)
    gate_up_scale = torch.empty(num_experts, 2, *scaling.weight_shape(inner, hidden), device=device)
    down_scale = torch.empty(num_experts, *scaling.weight_shape(hidden, inner), device=device)
    return PackedExperts(
        gate_up=gate_up,
        down=down,
        num_experts=num_experts,
        hidden=hidden,
        inner=inner,
        dtype=dtype,
        is_plain=True,
        scales=(gate_up_scale, down_scale),
        arrivals=torch.zeros(MOST_COUNTED_ROWS * -(-inner // FP8_BLOCK), dtype=torch.int32, device=device),
    )


def fill_expert(experts: PackedExperts, index: int, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
    """Write expert `index`: gate, up [I, H], down [H, I] of the experts' dtype."""
    assert experts.scales is None, "FP8 experts are filled with their scales: fill_fp8_expert"
    _check_expert(experts, (gate, up, down), experts.dtype)
    if experts.is_plain:
        experts.gate_up[index, 0], experts.gate_up[index, 1], experts.down[index] = gate, up, down
    else:
        cpu.fill(experts.gate_up[index], experts.down[index], gate.contiguous(), up.contiguous(), down.contiguous())


def fill_fp8_expert(experts: PackedExperts, index: int, weights: Weights, scales: Weights) -> None:
    """Write expert `index`: gate, up [I, H], down [H, I] e4m3, and their scales in the experts' format."""
    assert experts.scales is not None, "experts that are not FP8 have no scales: fill_expert"
    _check_expert(experts, weights, torch.float8_e4m3fn)
    experts.gate_up[index, 0], experts.gate_up[index, 1], experts.down[index] = weights
    gate_up_scale, down_scale = experts.scales
    for place, scale in zip((*gate_up_scale[index], down_scale[index]), scales, strict=True):
        assert scale.shape == place.shape, f"scales are {list(scale.shape)}, not {list(place.shape)}"
        place.copy_(scale)


def _check_expert(experts: PackedExperts, weights: Weights, dtype: torch.dtype) -> None:
    inner, hidden = experts.inner, experts.hidden
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    for name, tensor, shape in zip(("gate", "up", "down"), weights, shapes, strict=True):
        assert tensor.shape == shape, f"{name} is {list(tensor.shape)}, not {list(shape)}"
        assert tensor.dtype == dtype, f"{name} is {tensor.dtype}, not {dtype}"


def pack_experts(gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> PackedExperts:
    """Lay out gate, up [E, I, H] and down [E, H, I]."""
    num_experts, inner, hidden = gate.shape
    experts = allocate_experts(num_experts, hidden, inner, gate.dtype, gate.device)
    for index in range(num_experts):
        fill_expert(experts, index, gate[index], up[index], down[index])
    return experts


def grouped_swiglu(
    rows: torch.Tensor,
    counts: torch.Tensor | None,
    experts: PackedExperts,
    order: RowOrder | None = None,
    quantised: Fp8Rows | None = None,
) -> torch.Tensor:
    """down(silu(gate x) * up x) of each row's expert.

    rows [R, H] of the experts' dtype, sorted by expert, or on a GPU rows [T, H] whose copies `order` sorts; counts [E]
    int32 on the rows' device, R in sum at most: what lies behind is not computed; None where one expert has all rows.
    Returns [R, H]. Sums in fp32, the product rounded once to the dtype. Experts without rows are not read. R = 0 is
    valid.
    What meets FP8 weights is quantised as their format says, the rows and the products of gate and up (model-spec §4);
    `quantised` is what the rows were quantised to, if that was done.
    Source: model-spec §2.5, §2.6. Raises nothing; shapes are asserted.
    """
    assert rows.dim() == 2 and rows.shape[1] == experts.hidden, f"rows are {list(rows.shape)}, H is {experts.hidden}"
    assert rows.dtype == experts.dtype, f"rows are {rows.dtype}, experts {experts.dtype}"
    assert rows.is_contiguous(), f"rows have strides {rows.stride()}"
    if counts is None:
        assert experts.num_experts == 1 and order is None, f"{experts.num_experts} experts without counts"
    else:
        assert counts.dtype == torch.int32 and len(counts) == experts.num_experts, (
            f"counts are {counts.dtype} {len(counts)}"
        )
    if experts.is_plain and native.runs_triton(rows):
        from kernels.grouped_swiglu import triton_kernel  # Triton is imported where it runs

        return triton_kernel.grouped_swiglu(
            *(rows, counts, experts.gate_up, experts.down, experts.scales, experts.arrivals, order, quantised)
        )
    assert order is None, "rows that no kernel of a GPU reads lie in order"
    if counts is None:
        counts = torch.full((1,), len(rows), dtype=torch.int32, device=rows.device)
    if not experts.is_plain:
        return cpu.grouped_swiglu(rows, counts, experts.gate_up, experts.down, experts.inner)
    gate, up = experts.gate_up[:, 0], experts.gate_up[:, 1]
    if experts.scales is not None:
        return reference.grouped_swiglu_fp8(rows, counts, experts.gate_up, experts.down, experts.scales)
    return reference.grouped_swiglu(rows, counts, gate, up, experts.down)
