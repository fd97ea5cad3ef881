"""The two published layouts of an EAGLE3 head's config.json, brought to one set of fields.

SGLang, SafeAILab and SpecForge write a flat Llama config, whose captured layers are named by the layers whose *output*
is wanted; vLLM's speculators nest the layer under `transformer_layer_config` and name the layers already run, which
is one more. Source: speculative-decoding notes §1, model-spec §6.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from model.config import ModelConfig
from model.errors import ConfigError

CAPTURE_IDS = "eagle_aux_hidden_state_layer_ids"
_SWITCHES = ("norm_before_fc", "fc_norm", "norm_output", "norm_before_residual", "use_aux_hidden_state")
_LLAMA_ROPE_THETA = 10000.0  # where a Llama config says nothing


def flattened(raw: dict[str, Any], target: ModelConfig, known: Container[str]) -> dict[str, Any]:
    """The `known` fields of either layout, with what is absent filled in. Raises ConfigError; values are unchecked."""
    nested, eagle = _object(raw, "transformer_layer_config"), _object(raw, "eagle_config") or {}
    layer = dict(raw if nested is None else nested)
    _check_kind(raw)
    if layer.get("head_dim") is None:
        layer["head_dim"] = _number(layer, "hidden_size") // _number(layer, "num_attention_heads")
    if layer.get("num_key_value_heads") is None:
        layer["num_key_value_heads"] = layer.get("num_attention_heads")
    switches = {name: raw.get(name, eagle.get(name, layer.get(name))) for name in _SWITCHES}
    vocab_size = raw.get("draft_vocab_size")
    _check_target(raw, layer, target)
    return {
        **{name: value for name, value in layer.items() if name in known and value is not None},
        **{name: value for name, value in switches.items() if value is not None},
        "draft_vocab_size": target.vocab_size if vocab_size is None else vocab_size,
        "tie_word_embeddings": raw.get("tie_word_embeddings") or False,
        "capture_layers": _capture_layers(raw, eagle, target),
        "rope": _rope(layer),
        "sliding_window": _window(layer),
    }


def _check_kind(raw: dict[str, Any]) -> None:
    kind = raw.get("speculators_model_type", "eagle3")
    if kind != "eagle3":
        raise ConfigError("speculators_model_type", f"{kind!r} is not allowed: 'eagle3' is")
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all("eagle3" in str(name).lower() for name in names):
        raise ConfigError("architectures", f"{names!r} is not allowed: an EAGLE3 head is")


def _check_target(raw: dict[str, Any], layer: dict[str, Any], target: ModelConfig) -> None:
    """Refuse a head that was made for a model of another size."""
    width = raw.get("target_hidden_size")
    if width not in (None, target.hidden_size):
        raise ConfigError("target_hidden_size", f"{width!r}, the model has {target.hidden_size}")
    # Some write the draft's own vocabulary here.
    vocab_size = layer.get("vocab_size")
    if vocab_size not in (None, target.vocab_size, raw.get("draft_vocab_size")):
        raise ConfigError("vocab_size", f"{vocab_size!r}, the model has {target.vocab_size}")


def _window(layer: dict[str, Any]) -> object:
    """`sliding_window` where it holds for the one layer: layer_types or use_sliding_window may say that it does not."""
    window, kinds, is_used = (layer.get(name) for name in ("sliding_window", "layer_types", "use_sliding_window"))
    if kinds is not None and kinds not in (["full_attention"], ["sliding_attention"]):
        raise ConfigError("layer_types", f"{kinds!r} is not allowed: one full_attention or one sliding_attention is")
    if is_used is False or kinds == ["full_attention"]:
        return None
    if window is None and (is_used or kinds):
        raise ConfigError("sliding_window", "missing, and the layer is said to have a window")
    return window


def _capture_layers(raw: dict[str, Any], eagle: dict[str, Any], target: ModelConfig) -> tuple[int, ...]:
    """Which layers' inputs are captured; by default those of 2, the middle and the last but two."""
    run, outputs = (_ids(part.get(CAPTURE_IDS)) for part in (raw, eagle))
    from_outputs = tuple(layer + 1 for layer in outputs)
    if run and outputs and run != from_outputs:
        raise ConfigError(CAPTURE_IDS, f"{list(run)} contradicts eagle_config's outputs of {list(outputs)}")
    layers, num_layers = run or from_outputs, target.num_hidden_layers
    if not layers:
        if num_layers < 7:
            raise ConfigError(CAPTURE_IDS, f"missing, and the default needs 7 layers; the model has {num_layers}")
        layers = (2, num_layers // 2, num_layers - 3)
    count = raw.get("num_aux_hidden_states", eagle.get("num_aux_hidden_states"))
    if count not in (None, len(layers)):
        raise ConfigError("num_aux_hidden_states", f"{count!r}, but {len(layers)} layers are captured")
    return layers


def _ids(given: object) -> tuple[int, ...]:
    """None and an empty list both leave it to the default."""
    if given is None:
        return ()
    if not (isinstance(given, list) and all(type(i) is int for i in given)):
        raise ConfigError(CAPTURE_IDS, f"{given!r} is not allowed: a list of layers is")
    return tuple(given)


def _rope(layer: dict[str, Any]) -> dict[str, Any]:
    """The head's own rotary embedding, never the model's: of whole heads, unless the file says less."""
    name = "rope_parameters" if layer.get("rope_parameters") else "rope_scaling"
    fields = dict(_object(layer, name) or {})
    kind = fields.pop("type", None)
    fields.setdefault("rope_type", kind or "default")
    if fields.get("rope_theta") is None:
        theta = layer.get("rope_theta")
        fields["rope_theta"] = _LLAMA_ROPE_THETA if theta is None else theta
    if type(fields["rope_theta"]) is int:
        fields["rope_theta"] = float(fields["rope_theta"])
    partial = fields.pop("partial_rotary_factor", layer.get("partial_rotary_factor"))
    partial = 1.0 if partial is None else partial
    if type(partial) not in (int, float) or not 0 < partial <= 1:
        raise ConfigError("partial_rotary_factor", f"{partial!r} is not allowed: a number in (0, 1] is")
    fields["rotary_dim"] = int(_number(layer, "head_dim") * partial)
    if fields.get("original_max_position_embeddings") is None:
        fields["original_max_position_embeddings"] = layer.get("max_position_embeddings") or 2048  # a Llama config's
    if fields["rope_type"] == "yarn" and fields.get("factor") is None:
        raise ConfigError(f"{name}.factor", "missing; YaRN needs it")
    return fields


def _object(fields: dict[str, Any], name: str) -> dict[str, Any] | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(name, f"{value!r} is not allowed: an object or null is")
    return value


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or value < 1:
        raise ConfigError(name, "missing" if value is None else f"{value!r} is not allowed: a whole number above 0 is")
    return value
