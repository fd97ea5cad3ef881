"""What a draft model adds to a rank's memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from engine.config import EngineConfig
from engine.drafters.proposal_sizes import proposal_bytes
from model.config import ModelConfig
from model.eagle3_config import Eagle3Config
from model.eagle3_shapes import num_parameters
from scheduler.request import DraftMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftShare:
    """On every rank. An MTP layer's weights are the model's own."""

    method: DraftMethod = DraftMethod.NONE
    num_parameters: int = 0
    kv_values_per_token: int = 0  # of its own KV layer
    proposal_bytes: int = 0  # of drawn drafts, kept and verified

    @classmethod
    def of(cls, engine: EngineConfig, model: ModelConfig) -> Self:
        """What this configuration loads. Raises CheckpointError or ConfigError for a head that cannot be read."""
        speculation = engine.speculation
        if speculation.loaded is DraftMethod.EAGLE3:
            assert speculation.draft_dir is not None, "the head's folder is settled with the method"
            head = Eagle3Config.from_dir(speculation.draft_dir, model)
            return cls(
                method=DraftMethod.EAGLE3,
                num_parameters=num_parameters(head, model),
                kv_values_per_token=2 * head.num_key_value_heads * head.head_dim,
                proposal_bytes=proposal_bytes(engine, model),
            )
        if speculation.loaded is DraftMethod.MTP:
            values = 2 * model.num_key_value_heads * model.head_dim
            return cls(method=DraftMethod.MTP, kv_values_per_token=values, proposal_bytes=proposal_bytes(engine, model))
        return cls(method=speculation.method)


NOTHING_DRAFTED = DraftShare()
