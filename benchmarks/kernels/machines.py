"""What bounds a kernel on the machines that we care about, from data sheets; the CPU's figure is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Memory bandwidth and dense products a second, by the type of their operands; 0 where we have no figure."""

    name: str
    gb_s: float
    tflop_s: dict[torch.dtype, float]

    def floor_us(self, num_bytes: int, num_flop: int, operands: torch.dtype) -> float:
        """The time that no kernel can beat: every byte once, every product at full rate."""
        tflop_s = self.tflop_s.get(operands, 0.0)
        return max(num_bytes / self.gb_s / 1e3, num_flop / tflop_s / 1e6 if tflop_s else 0.0)


_HOPPER = {torch.float32: 67.0, torch.bfloat16: 989.0, torch.float8_e4m3fn: 1979.0}  # H100 SXM and H200 data sheets
_H20 = {torch.float32: 44.0, torch.bfloat16: 148.0, torch.float8_e4m3fn: 296.0}  # H20 data sheet
MACHINES = (
    Machine(name="H200", gb_s=4800.0, tflop_s=_HOPPER),
    Machine(name="H20", gb_s=4000.0, tflop_s=_H20),
    Machine(name="H100", gb_s=3350.0, tflop_s=_HOPPER),
)
# One core pair of a two-core cloud machine, measured with a sum over 200 MB.
CPU = Machine(name="CPU", gb_s=31.0, tflop_s={})


def this_machine() -> Machine:
    """The machine that this process runs on; an unknown GPU has no floor worth telling and is refused."""
    if not torch.cuda.is_available():
        return CPU
    name = torch.cuda.get_device_name()
    known = [machine for machine in MACHINES if machine.name in name]
    assert known, f"no figures for {name}: add its bandwidth to benchmarks/kernels/machines.py"
    return known[0]
