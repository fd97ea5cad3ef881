"""What an EAGLE3 draft head says of itself: every switch that changes the computation is honoured or refused by name.

Source: speculative-decoding notes §1, model-spec §6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from model.config import ModelConfig, Rope
from model.eagle3_layouts import CAPTURE_IDS, flattened
from model.errors import ConfigError
from model.strict_json import read_object

_PUBLISHED = {"rope": "rope_scaling", "capture_layers": CAPTURE_IDS}  # ours -> as config.json has it


class Eagle3Config(BaseModel):
    """One draft layer with its head. Field names are those of the flat layout; what is absent is off."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt = Field(multiple_of=2, le=512)  # what the attention kernels take
    rms_norm_eps: PositiveFloat = 1e-6
    rope: Rope
    sliding_window: PositiveInt | None = None  # positions that a row sees, its own included; None: all
    draft_vocab_size: PositiveInt
    capture_layers: tuple[int, ...]  # id i: the state that the target's layer i receives
    norm_before_fc: bool = False  # one RMSNorm over all captured states together
    fc_norm: bool = False  # one RMSNorm for each of them
    norm_output: bool = False  # the state fed back is the normed one
    norm_before_residual: bool = False  # the residual is the normed state
    attention_bias: bool = False
    tie_word_embeddings: bool = False

    # One value is implemented.
    num_hidden_layers: Literal[1] = 1
    hidden_act: Literal["silu"] = "silu"
    mlp_bias: Literal[False] = False
    is_causal: Literal[True] = True
    rope_interleave: Literal[False] = False
    use_aux_hidden_state: Literal[True] = True  # without: the last state alone, and no fc

    @classmethod
    def from_dir(cls, directory: str | Path, target: ModelConfig) -> Self:
        """Read config.json of a head made for `target`. Raises CheckpointError or ConfigError."""
        return cls.from_dict(read_object(Path(directory) / "config.json"), target)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], target: ModelConfig) -> Self:
        """Check the contents of a config.json. Raises ConfigError."""
        try:
            config = cls.model_validate(flattened(raw, target, cls.model_fields))
        except ValidationError as error:
            raise _config_error(error) from None
        config.check_against(target)
        return config

    @property
    def max_context(self) -> int | None:
        """Positions the head is meant for; None: any, since no row looks further back than it was trained to."""
        length = self.rope.original_max_position_embeddings
        if self.rope.rope_type == "yarn":
            length = int(self.rope.factor * length)
        return None if self.sliding_window is not None and self.sliding_window <= length else length

    def check_against(self, target: ModelConfig) -> None:
        """Raise ConfigError where the head cannot belong to this model."""
        if self.draft_vocab_size > target.vocab_size:
            raise ConfigError("draft_vocab_size", f"{self.draft_vocab_size} is more than the model's vocabulary")
        if self.tie_word_embeddings and self.draft_vocab_size != target.vocab_size:
            raise ConfigError("tie_word_embeddings", "a head over a part of the vocabulary cannot be the embedding")
        beyond = [layer for layer in self.capture_layers if not 0 <= layer < target.num_hidden_layers]
        if beyond or list(self.capture_layers) != sorted(set(self.capture_layers)):
            raise ConfigError(
                CAPTURE_IDS,
                f"captures the states that layers {list(self.capture_layers)} receive; the model's are 0 to "
                f"{target.num_hidden_layers - 1}, each once, in order",
            )

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise _fault("num_key_value_heads", f"{kv_heads} is no divisor of {heads} attention heads")
        if self.norm_before_fc and self.fc_norm:
            raise _fault("fc_norm", "goes not together with norm_before_fc")
        return self


def _fault(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("field", "{field}: {message}", {"field": field, "message": message})


def _config_error(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    if first["type"] == "field":
        return ConfigError(str(first["ctx"]["field"]), str(first["ctx"]["message"]))
    parts = [str(part) for part in first["loc"]]
    path = ".".join([_PUBLISHED.get(parts[0], parts[0]), *parts[1:]])
    if first["type"] == "missing":
        return ConfigError(path, "missing; it must be given, no default is safe")
    return ConfigError(path, f"{first['input']!r} is not allowed: {first['msg']}")
