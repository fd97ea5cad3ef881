"""What an EAGLE3 draft head says of itself, in either of the two layouts that are published.

SGLang, SafeAILab and SpecForge write a flat Llama config, whose captured layers are named by the layers whose *output*
is wanted; vLLM's speculators nest the layer under `transformer_layer_config` and name the layers already run, which
is one more. Every switch that changes the computation is honoured or refused by name (absent means off).
Source: speculative-decoding notes §1, model-spec §6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from model.config import ModelConfig, Rope
from model.errors import ConfigError
from model.strict_json import read_object

_NUM_CAPTURED = 3  # unless the file says otherwise
_SWITCHES = ("norm_before_fc", "fc_norm", "norm_output", "norm_before_residual")


class Eagle3Config(BaseModel):
    """One draft layer with its head. Field names are those of the flat layout."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    rms_norm_eps: PositiveFloat = 1e-6
    rope: Rope
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

    @classmethod
    def from_dir(cls, directory: str | Path, target: ModelConfig) -> Self:
        """Read config.json of a head made for `target`. Raises CheckpointError or ConfigError."""
        return cls.from_dict(read_object(Path(directory) / "config.json"), target)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], target: ModelConfig) -> Self:
        """Check the contents of a config.json. Raises ConfigError."""
        try:
            config = cls.model_validate(_flattened(raw, target))
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "field":
                raise ConfigError(str(first["ctx"]["field"]), str(first["ctx"]["message"])) from None
            path = ".".join(str(part) for part in first["loc"])
            message = "missing" if first["type"] == "missing" else f"{first['input']!r} is not allowed: {first['msg']}"
            raise ConfigError(path, message) from None
        config.check_against(target)
        return config

    def check_against(self, target: ModelConfig) -> None:
        """Raise ConfigError where the head cannot belong to this model."""
        if self.draft_vocab_size > target.vocab_size:
            raise ConfigError("draft_vocab_size", f"{self.draft_vocab_size} is more than the model's vocabulary")
        if self.tie_word_embeddings and self.draft_vocab_size != target.vocab_size:
            raise ConfigError("tie_word_embeddings", "a head over a part of the vocabulary cannot be the embedding")
        beyond = [layer for layer in self.capture_layers if not 0 <= layer < target.num_hidden_layers]
        if beyond or list(self.capture_layers) != sorted(set(self.capture_layers)):
            raise ConfigError(
                "eagle_aux_hidden_state_layer_ids",
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


def _flattened(raw: dict[str, Any], target: ModelConfig) -> dict[str, Any]:
    """The fields of either layout under the names of `Eagle3Config`. Raises ConfigError."""
    nested, eagle = raw.get("transformer_layer_config"), raw.get("eagle_config") or {}
    for name, part in (("transformer_layer_config", nested), ("eagle_config", eagle)):
        if part is not None and not isinstance(part, dict):
            raise ConfigError(name, f"{part!r} is not allowed: an object is")
    layer = dict(nested) if isinstance(nested, dict) else dict(raw)
    _check_kind(raw)
    _check_window(layer, target)
    if layer.get("head_dim") is None:
        layer["head_dim"] = _number(layer, "hidden_size") // _number(layer, "num_attention_heads")
    if layer.get("num_key_value_heads") is None:
        layer["num_key_value_heads"] = layer.get("num_attention_heads")
    if raw.get("target_hidden_size") not in (None, target.hidden_size):
        raise ConfigError("target_hidden_size", f"{raw['target_hidden_size']!r}, the model has {target.hidden_size}")
    switches = {name: raw.get(name, eagle.get(name, layer.get(name))) for name in _SWITCHES}
    vocab_size = raw.get("draft_vocab_size")
    return {
        **{name: value for name, value in layer.items() if name in Eagle3Config.model_fields},
        **{name: value for name, value in switches.items() if value is not None},
        "draft_vocab_size": target.vocab_size if vocab_size is None else vocab_size,
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "capture_layers": _capture_layers(raw, eagle, target),
        "rope": _rope(layer),
    }


def _check_kind(raw: dict[str, Any]) -> None:
    kind = raw.get("speculators_model_type", "eagle3")
    if kind != "eagle3":
        raise ConfigError("speculators_model_type", f"{kind!r} is not allowed: 'eagle3' is")
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all("eagle3" in str(name).lower() for name in names):
        raise ConfigError("architectures", f"{names!r} is not allowed: an EAGLE3 head is")


def _check_window(layer: dict[str, Any], target: ModelConfig) -> None:
    """A window that no context outgrows is none; attention within a shorter one is not implemented."""
    kinds = layer.get("layer_types") or []
    is_windowed = layer.get("use_sliding_window", bool(kinds)) and (not kinds or "sliding_attention" in kinds)
    window = layer.get("sliding_window") if is_windowed else None
    if window is not None and (not isinstance(window, int) or window < target.max_context):
        raise ConfigError("sliding_window", f"{window!r} is shorter than the model's context of {target.max_context}")


def _capture_layers(raw: dict[str, Any], eagle: dict[str, Any], target: ModelConfig) -> tuple[int, ...]:
    """Which layers' inputs are captured; by default those of 2, the middle and the last but two."""
    name = "eagle_aux_hidden_state_layer_ids"
    run, outputs = raw.get(name), eagle.get(name)
    for given in (run, outputs):
        if given is not None and not (isinstance(given, list) and all(type(i) is int for i in given)):
            raise ConfigError(name, f"{given!r} is not allowed: a list of layers is")
    count = raw.get("num_aux_hidden_states", eagle.get("num_aux_hidden_states"))
    if run is not None:
        layers = tuple(run)
    elif outputs is not None:
        layers = tuple(layer + 1 for layer in outputs)
    else:
        num_layers = target.num_hidden_layers
        if num_layers < 7:
            raise ConfigError(name, f"missing, and the default needs 7 layers; the model has {num_layers}")
        layers = (2, num_layers // 2, num_layers - 3)
    if count is not None and count != len(layers):
        raise ConfigError("num_aux_hidden_states", f"{count!r}, but {len(layers)} layers are captured")
    return layers


def _rope(layer: dict[str, Any]) -> dict[str, Any]:
    """The head's own rotary embedding, whole heads of it unless the file says less; Llama's base is 10,000."""
    given = layer.get("rope_parameters") or layer.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ConfigError("rope_scaling", f"{given!r} is not allowed: an object or null is")
    fields = dict(given)
    kind = fields.pop("type", None)
    fields.setdefault("rope_type", kind or "default")
    theta = fields.get("rope_theta") or layer.get("rope_theta") or 10000.0
    fields["rope_theta"] = float(theta) if type(theta) is int else theta
    partial = fields.pop("partial_rotary_factor", None) or layer.get("partial_rotary_factor") or 1.0
    fields["rotary_dim"] = int(_number(layer, "head_dim") * partial)
    fields.setdefault("original_max_position_embeddings", layer.get("max_position_embeddings") or 2048)
    return fields


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or value < 1:
        raise ConfigError(name, "missing" if value is None else f"{value!r} is not allowed: a whole number above 0 is")
    return value


def _fault(field: str, message: str) -> PydanticCustomError:
    return PydanticCustomError("field", "{field}: {message}", {"field": field, "message": message})
