"""`sigmoe plan`: what a model takes and gives on so many GPUs, before anybody has them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cluster import plan_report
from cluster.capacity import CapacityPlan, CapacityRequest, DoesNotFit
from cluster.capacity import plan as capacity_plan
from cluster.config import ConfigMistake
from cluster.devices import DEVICES, GB
from cluster.roofline import Roofline
from engine.config import KVPrecision
from model.config import ModelConfig
from model.errors import CheckpointError
from model.quantization import BlockFp8

EXIT_FAILURE, EXIT_USAGE = 1, 2

# Of a GPU's memory, for what is neither weights nor caches: CUDA's context, NCCL's buffers, graphs. An assumption.
RESERVED_BYTES = 3 * GB

_FP8 = BlockFp8(quant_method="fp8", weight_block_size=(128, 128))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What the command line says."""

    model: str
    gpu: str
    num_ranks: int
    context: int
    batches: tuple[int, ...]
    has_fp8_weights: bool | None = None  # in memory; None: where the checkpoint has them and the GPU reads them
    has_fp8_payload: bool = False
    has_fp8_kv: bool = False
    max_rows: int = 2048
    max_sequences: int = 256
    kv_fraction: float = 0.85
    block_size: int = 64
    ranks_per_node: int = 8
    is_json: bool = False


def run_plan(options: PlanOptions) -> int:
    """Print the plan; exit code 2 for wrong input, 1 where the model does not fit."""
    try:
        roofline = planned(options)
    except DoesNotFit as error:
        print(f"sigmoe plan: {error}".replace("cluster.ranks", "--ranks"), file=sys.stderr)
        return EXIT_FAILURE
    except (CheckpointError, ConfigMistake) as error:
        print(f"sigmoe plan: {error}", file=sys.stderr)
        return EXIT_USAGE
    if options.is_json:
        print(json.dumps(plan_report.as_dict(roofline, options.context, options.batches, options.max_rows)))
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(plan_report.render(roofline, options.context, options.batches, options.max_rows))
    return 0


def planned(options: PlanOptions) -> Roofline:
    """The group on its GPUs. Raises ConfigMistake naming the flag at fault, DoesNotFit, CheckpointError."""
    if options.gpu not in DEVICES:
        raise ConfigMistake(f"--gpu: {options.gpu!r} is not known: {', '.join(DEVICES)} are")
    device = DEVICES[options.gpu]
    model = ModelConfig.from_dir(_folder(options.model))
    if options.context > model.max_context:
        raise ConfigMistake(f"--context: {options.context:,} is more than the model's {model.max_context:,} tokens")
    if model.num_experts % options.num_ranks:
        divisors = [str(n) for n in range(1, model.num_experts + 1) if model.num_experts % n == 0]
        raise ConfigMistake(
            f"--ranks: {options.num_ranks} do not share {model.num_experts} experts evenly: {', '.join(divisors)} do"
        )
    if options.has_fp8_weights and device.fp8_flops is None:
        raise ConfigMistake(f"--weights: fp8 is not for {device.title}, which has no FP8 units")
    if options.has_fp8_kv and device.fp8_flops is None:
        raise ConfigMistake(f"--kv: fp8 is not for {device.title}, which has no FP8 units")
    has_fp8_weights = options.has_fp8_weights
    if has_fp8_weights is None:
        has_fp8_weights = model.quantization is not None and device.fp8_flops is not None
    if has_fp8_weights and model.quantization is None:
        model = model.model_copy(update={"quantization": _FP8})  # as its FP8 copy would be
    return Roofline(
        plan=_capacity(model, options, device.memory_bytes - RESERVED_BYTES, keeps_fp8=has_fp8_weights),
        device=device,
        has_fp8_weights=has_fp8_weights,
        has_fp8_payload=options.has_fp8_payload,
        ranks_per_node=options.ranks_per_node,
    )


def _capacity(model: ModelConfig, options: PlanOptions, memory_bytes: int, *, keeps_fp8: bool) -> CapacityPlan:
    return capacity_plan(
        model,
        CapacityRequest(
            num_ranks=options.num_ranks,
            memory_bytes=memory_bytes,
            kv_fraction=options.kv_fraction,
            kv_precision=KVPrecision.FP8 if options.has_fp8_kv else KVPrecision.AUTO,
            block_size=options.block_size,
            max_rows_per_step=options.max_rows,
            max_sequences=options.max_sequences,
            max_context=options.context,
            keeps_fp8=keeps_fp8,
        ),
    )


def _folder(model: str) -> str:
    """A checkpoint's folder, or its config.json alone."""
    path = Path(model)
    if path.is_file() and path.name == "config.json":
        return str(path.parent)
    return model
