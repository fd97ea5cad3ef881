"""`sigmoe serve --dry-run`: the resolved configuration and what it comes to."""

from __future__ import annotations

import json
import sys

import psutil

from cluster import capacity_report, settings
from cluster.capacity import CapacityRequest, DoesNotFit, plan
from cluster.config import Config
from cluster.draft_share import DraftShare
from model.config import ModelConfig
from model.errors import CheckpointError

EXIT_FAILURE = 1


def dry_run(config: Config, *, is_json: bool) -> int:
    """Print the plan; exit code 1 when the checkpoint cannot be read or the memory does not suffice."""
    memory = config.cluster.memory_per_rank or psutil.virtual_memory().available // config.cluster.ranks
    try:
        model = ModelConfig.from_dir(config.model.path)
        engine = settings.engine_config(config, model)
        draft = DraftShare.of(engine, model)
        made = plan(model, CapacityRequest.from_engine(engine, model, memory, draft))
    except (CheckpointError, DoesNotFit) as error:
        print(f"sigmoe serve: {error}", file=sys.stderr)
        return EXIT_FAILURE
    if is_json:
        print(json.dumps({"config": config.model_dump(mode="json"), "plan": capacity_report.as_dict(made)}))
        return 0
    for section, keys in config.model_dump(mode="json").items():
        for key, value in keys.items():
            print(f"{section + '.' + key:<28} {json.dumps(value)}")
    print(f"\n{capacity_report.render(made)}")
    return 0
