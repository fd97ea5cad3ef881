"""The experts of one rank: a grouped GEMM for gate and up, SwiGLU, a grouped GEMM for down, in one call.

Bytes: 3 * H * I weights of each expert that has rows; FLOP: 6 * R * H * I.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels import native
from kernels.grouped_swiglu import cpu, reference


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedExperts:
    """The weights of E experts of hidden width H and inner width I.

    In panels: `gate_up` and `down` are [E, bytes] uint8. Plain: `gate_up` is [E, 2, I, H], `down` is [E, H, I].
    """

    gate_up: torch.Tensor
    down: torch.Tensor
    num_experts: int
    hidden: int
    inner: int
    dtype: torch.dtype
    is_plain: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""
        return self.gate_up.nbytes + self.down.nbytes


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


def fill_expert(experts: PackedExperts, index: int, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> None:
    """Write expert `index`: gate, up [I, H], down [H, I] of the experts' dtype."""
    inner, hidden = experts.inner, experts.hidden
    for name, tensor, shape in (
        ("gate", gate, (inner, hidden)),
        ("up", up, (inner, hidden)),
        ("down", down, (hidden, inner)),
    ):
        assert tensor.shape == shape, f"{name} is {list(tensor.shape)}, not {list(shape)}"
        assert tensor.dtype == experts.dtype, f"{name} is {tensor.dtype}, not {experts.dtype}"
    if experts.is_plain:
        experts.gate_up[index, 0], experts.gate_up[index, 1], experts.down[index] = gate, up, down
    else:
        cpu.fill(experts.gate_up[index], experts.down[index], gate.contiguous(), up.contiguous(), down.contiguous())


def pack_experts(gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> PackedExperts:
    """Lay out gate, up [E, I, H] and down [E, H, I]."""
    num_experts, inner, hidden = gate.shape
    experts = allocate_experts(num_experts, hidden, inner, gate.dtype, gate.device)
    for index in range(num_experts):
        fill_expert(experts, index, gate[index], up[index], down[index])
    return experts


def grouped_swiglu(rows: torch.Tensor, counts: torch.Tensor, experts: PackedExperts) -> torch.Tensor:
    """down(silu(gate x) * up x) of each row's expert.

    rows [R, H] of the experts' dtype, sorted by expert; counts [E] int32 on the CPU, summing to R. Returns [R, H].
    Sums in fp32, the product rounded once to the dtype. Experts without rows are not read. R = 0 is valid.
    Source: model-spec §2.5, §2.6. Raises nothing; shapes are asserted.
    """
    assert rows.dim() == 2 and rows.shape[1] == experts.hidden, f"rows are {list(rows.shape)}, H is {experts.hidden}"
    assert rows.dtype == experts.dtype, f"rows are {rows.dtype}, experts {experts.dtype}"
    assert rows.is_contiguous(), f"rows have strides {rows.stride()}"
    assert counts.dtype == torch.int32 and counts.shape[0] == experts.num_experts, (
        f"counts are {counts.dtype} {len(counts)}"
    )
    if experts.is_plain:
        gate, up = experts.gate_up[:, 0], experts.gate_up[:, 1]
        return reference.grouped_swiglu(rows, counts, gate, up, experts.down)
    return cpu.grouped_swiglu(rows, counts, experts.gate_up, experts.down, experts.inner)
