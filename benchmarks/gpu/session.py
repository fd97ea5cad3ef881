"""One run on one device: what time is left, and a JSON file that is written anew as each phase ends."""

from __future__ import annotations

import json
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton

Figures = dict[str, Any]


class NoTime(Exception):
    """The run's time is used up."""


@dataclass(slots=True, kw_only=True)
class Session:
    """The device, the time and what has been found so far. Figures that were not measured are absent."""

    out: Path
    device: torch.device
    tiny: bool
    seed: int
    deadline_s: float  # of time.monotonic
    report: Figures = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        """Whether times are the device's; on the CPU they are wall clock of an interpreter and mean nothing."""
        return self.device.type == "cuda"

    def describe(self) -> None:
        """Write down where and with what this ran."""
        self.report |= {
            "device": torch.cuda.get_device_name(self.device) if self.is_cuda else f"cpu ({platform.machine()})",
            "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
            "tiny": self.tiny,
            "seed": self.seed,
            "clock": "CUDA events" if self.is_cuda else "wall clock of Triton's interpreter: meaningless as speed",
            "phases": {},
        }
        self.write()

    def demand_time(self, needed_s: float = 0.0) -> None:
        """Raise NoTime unless so many seconds are left."""
        left_s = self.deadline_s - time.monotonic()
        if left_s <= needed_s:
            raise NoTime(f"not run: {max(left_s, 0):.0f} s of the run's time were left")

    def phase(self, name: str, run: Callable[[], Figures]) -> bool:
        """Run one phase and keep its figures, or why there are none; returns whether it ended well."""
        start_s = time.monotonic()
        kept: Figures = {"ok": False}
        try:
            self.demand_time()
            with torch.device(self.device):
                kept = {"ok": True} | run()
        except Exception as error:  # whatever fails, the device is had for minutes and the other phases go on
            kept["error"] = f"{type(error).__name__}: {error}"
            if not isinstance(error, NoTime):
                kept["traceback"] = traceback.format_exc().splitlines()[-12:]
        kept["seconds"] = round(time.monotonic() - start_s, 2)
        self.report["phases"][name] = kept
        self.write()
        print(f"{name}: {'ok' if kept['ok'] else kept.get('error', 'failed')} ({kept['seconds']} s)", flush=True)
        return bool(kept["ok"])

    def each(self, runs: Mapping[str, Callable[[], Figures]], needed_s: float = 0.0) -> Figures:
        """The figures of each part of a phase; a part that fails does not take the others along."""
        found: Figures = {"ok": True}
        for name, run in runs.items():
            try:
                self.demand_time(needed_s)
                found[name] = run()
            except Exception as error:  # as above
                found[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
                if not isinstance(error, NoTime):
                    found[name]["traceback"] = traceback.format_exc().splitlines()[-12:]
            found["ok"] = found["ok"] and found[name].get("ok", True)
            print(f"  {name}: {'ok' if found[name].get('ok', True) else 'NOT OK'}", flush=True)
        return found

    def write(self) -> None:
        """The whole report so far."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(self.report, indent=1) + "\n", encoding="utf-8")
