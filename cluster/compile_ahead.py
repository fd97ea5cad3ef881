"""`sigmoe compile`: the kernels that a server would launch, into Triton's cache, without a server and without a GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from cluster.config import Config
from cluster.settings import engine_config
from engine.config import EngineConfig
from engine.precompile.ahead import compile_kernels
from engine.precompile.job import Report
from model.config import ModelConfig
from model.errors import CheckpointError
from router.placement import Placement

EXIT_FAILURE = 1


def compile_ahead(config: Config, capability: tuple[int, int], num_processes: int | None, *, is_json: bool) -> int:
    """Compile; exit code 1 when the model cannot be read or a kernel does not compile."""
    try:
        model = ModelConfig.from_dir(config.model.path)
        ranks = different_ranks(engine_config(config, model), model)
    except CheckpointError as error:
        print(f"sigmoe compile: {error}", file=sys.stderr)
        return EXIT_FAILURE
    reports = []
    for rank in ranks:
        reports.append(compile_kernels(rank, capability, _Line(is_json), num_processes))
        if reports[-1].error:
            names = f" ({', '.join(reports[-1].failed)})" if reports[-1].failed else ""
            print(f"sigmoe compile: {reports[-1].error}{names}", file=sys.stderr)
            return EXIT_FAILURE
    num_all, num_found = (sum(getattr(report, name) for report in reports) for name in ("num_done", "num_found"))
    if is_json:
        print(json.dumps({"kernels": num_all, "in_cache_before": num_found}))
    elif num_all:
        print(f"{num_all} kernels, {num_found} of them were in Triton's cache before")
    else:
        print("all kernels are in Triton's cache")
    return 0


def different_ranks(config: EngineConfig, model: ModelConfig) -> list[EngineConfig]:
    """One of the ranks with each number of experts: what those launch differs."""
    sizes = [len(experts) for experts in Placement.even(model.num_experts, config.group_size).experts]
    return [replace(config, rank=sizes.index(size)) for size in sorted(set(sizes), reverse=True)]


class _Line:
    """How far it is, on one line of a terminal."""

    def __init__(self, is_json: bool) -> None:
        self._is_shown = sys.stderr.isatty() and not is_json

    def __call__(self, report: Report) -> None:
        if self._is_shown:
            end = "\n" if report.num_done == report.num_all else ""
            print(f"\r{report.num_done} of {report.num_all} kernels", end=end, file=sys.stderr, flush=True)
