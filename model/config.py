"""What a BailingMoeV2 checkpoint says of itself: `config.json`, checked once, here.

Attributes carry the names of config.json (model-spec §1). Fields whose absence other implementations fill with a
default that changes the model (partial_rotary_factor, rope_theta, routed_scaling_factor, n_group, ...) are required;
fields of which one value alone is implemented may be absent, and any other value is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from model.errors import ConfigError
from model.quantization import Quantization
from model.strict_json import read_object

CHAT_END_TOKENS = ("<|endoftext|>", "<|role_end|>")  # generation configs of this family list one or both (§7)

_PUBLISHED = {"rope": "rope_scaling", "quantization": "quantization_config"}  # ours -> as config.json has it


class Rope(BaseModel):
    """Rotary embedding: plain or YaRN (static: it changes short prompts too)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    rope_type: Literal["default", "yarn"] = "default"
    rope_theta: PositiveFloat
    rotary_dim: PositiveInt = Field(multiple_of=2)
    factor: float = Field(default=1.0, ge=1.0)
    original_max_position_embeddings: int = Field(gt=0, lt=2**31)
    beta_fast: float = Field(default=32.0, ge=1e-3)
    beta_slow: float = Field(default=1.0, ge=1e-3)
    attention_factor: PositiveFloat | None = None
    mscale: float | None = Field(default=None, ge=0)
    mscale_all_dim: float | None = Field(default=None, ge=0)  # below, what it makes may be a zero to divide by
    truncate: bool = True

    @model_validator(mode="after")
    def _check_yarn(self) -> Self:
        # YaRN divides by its logarithm, to tell fast pairs from slow ones.
        _demand(self.rope_type == "default" or self.rope_theta > 1, "rope_theta", self.rope_theta, "more than 1")
        return self


class ModelConfig(BaseModel):
    """One BailingMoeV2. Keys that do not touch inference (dropout, initialisation, losses) are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    model_type: Literal["bailing_moe", "bailing_moe_v2"]
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    intermediate_size: PositiveInt
    moe_intermediate_size: PositiveInt
    moe_shared_expert_intermediate_size: PositiveInt
    num_experts: PositiveInt
    num_experts_per_tok: int = Field(ge=2)  # the reference skips normalisation at 1
    num_shared_experts: PositiveInt
    first_k_dense_replace: int = Field(ge=0)
    n_group: PositiveInt
    topk_group: PositiveInt
    moe_router_enable_expert_bias: bool = True
    routed_scaling_factor: PositiveFloat  # the reference's class default is 1.0, the models' is 2.5
    rms_norm_eps: PositiveFloat
    max_position_embeddings: PositiveInt
    rope: Rope
    tie_word_embeddings: bool = False
    num_nextn_predict_layers: int = Field(default=0, ge=0, le=1)
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    torch_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    quantization: Quantization | None = None

    # One value is implemented; a checkpoint that says nothing means it (model-spec §1).
    score_function: Literal["sigmoid"] = "sigmoid"
    norm_topk_prob: Literal[True] = True
    router_dtype: Literal["fp32"] | None = "fp32"
    use_qk_norm: Literal[True] = True
    use_rmsnorm: Literal[True] = True
    use_bias: Literal[False] = False
    use_qkv_bias: Literal[False] = False
    norm_head: Literal[False] = False
    use_sliding_window: Literal[False] = False
    hidden_act: Literal["silu"] = "silu"

    @classmethod
    def from_dir(cls, directory: str | Path) -> Self:
        """Read config.json and the end-of-text ids that stand beside it. Raises CheckpointError or ConfigError."""
        folder = Path(directory)
        raw = read_object(folder / "config.json")
        return cls.from_dict(raw, extra_eos=_neighbouring_eos(folder))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], extra_eos: tuple[int, ...] = ()) -> Self:
        """Check the contents of a config.json; `extra_eos` joins its own end-of-text ids. Raises ConfigError."""
        fields = dict(raw)
        fields["eos_token_ids"] = tuple(sorted({*_as_ids(raw.get("eos_token_id")), *extra_eos}))
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _config_error(error) from None

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, raw: dict[str, Any]) -> dict[str, Any]:
        fields = {key: value for key, value in raw.items() if key != "rope"}
        _check_architecture(raw.get("architectures"))
        if fields.get("head_dim") is None:
            fields["head_dim"] = _positive_int(raw, "hidden_size") // _positive_int(raw, "num_attention_heads")
        if fields.get("moe_shared_expert_intermediate_size") is None:
            fields["moe_shared_expert_intermediate_size"] = raw.get("moe_intermediate_size")
        for name in ("num_nextn_predict_layers", "quantization_config", "dtype", "rope_scaling", "rope_parameters"):
            if fields.get(name) is None:
                fields.pop(name, None)
        if "dtype" in fields:  # transformers 5 renamed torch_dtype
            fields["torch_dtype"] = fields["dtype"]
        fields["quantization"] = fields.get("quantization_config")
        fields["rope"] = raw["rope"] if "rope" in raw else _rope_fields(fields)
        return fields

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        heads, kv_heads, groups = self.num_attention_heads, self.num_key_value_heads, self.n_group
        per_group = self.num_experts // groups
        _demand(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"a divisor of {heads} attention heads")
        _demand(self.num_experts % groups == 0, "n_group", groups, f"a divisor of {self.num_experts} experts")
        _demand(per_group >= 2, "n_group", groups, "at least two experts in each group")
        _demand(self.topk_group <= groups, "topk_group", self.topk_group, f"at most n_group = {groups}")
        kept = self.topk_group * per_group
        _demand(
            self.num_experts_per_tok <= kept,
            "num_experts_per_tok",
            self.num_experts_per_tok,
            f"at most {kept}, the experts of the {self.topk_group} groups kept",
        )
        _demand(
            self.first_k_dense_replace <= self.num_hidden_layers,
            "first_k_dense_replace",
            self.first_k_dense_replace,
            f"at most {self.num_hidden_layers} layers",
        )
        _demand(
            self.rope.rotary_dim <= self.head_dim,
            "partial_rotary_factor",
            self.rope.rotary_dim / self.head_dim,
            "at most 1",
        )
        for token_id in self.eos_token_ids:
            _demand(token_id < self.vocab_size, "eos_token_id", token_id, f"an id below vocab_size = {self.vocab_size}")
        return self

    @property
    def max_context(self) -> int:
        """Positions the model is meant for: with YaRN the stretched length, even where the field was left alone."""
        if self.rope.rope_type == "default":
            return self.max_position_embeddings
        stretched = int(self.rope.factor * self.rope.original_max_position_embeddings)
        return max(self.max_position_embeddings, stretched)

    @property
    def qkv_size(self) -> int:
        """Output rows of the fused projection: all Q, then all K, then all V."""
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim

    @property
    def shared_expert_size(self) -> int:
        """Width of the shared experts taken as one FFN."""
        return self.moe_shared_expert_intermediate_size * self.num_shared_experts

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts that plain decoding runs (without the MTP layer)."""
        return self.num_hidden_layers - self.first_k_dense_replace


def _as_ids(value: object) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise ConfigError("eos_token_id", f"{value!r} is not allowed: a token id or a list of them is")
    return tuple(ids)


def _neighbouring_eos(folder: Path) -> tuple[int, ...]:
    """End-of-text ids of generation_config.json and of the tokenizer's named tokens: all of them stop (§7)."""
    ids: set[int] = set()
    if (folder / "generation_config.json").exists():
        ids.update(_as_ids(read_object(folder / "generation_config.json").get("eos_token_id")))
    if (folder / "tokenizer_config.json").exists():
        added = read_object(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        named = {i: token.get("content") for i, token in added.items() if isinstance(token, dict) and i.isdigit()}
        ids.update(int(i) for i, content in named.items() if content in CHAT_END_TOKENS)
    return tuple(ids)


def _rope_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """Both spellings in one: `rope_theta` + `rope_scaling`, and the `rope_parameters` of transformers 5."""
    name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    given = raw.get(name) or {}
    if not isinstance(given, dict):
        _fail(name, f"{given!r} is not allowed: an object or null is")
    given = dict(given)
    kind = given.pop("type", None)
    given.setdefault("rope_type", kind or "default")
    if "rope_theta" not in given:
        given["rope_theta"] = raw.get("rope_theta") or _fail("rope_theta", "missing")
    given.setdefault("original_max_position_embeddings", _positive_int(raw, "max_position_embeddings"))
    partial = given.pop("partial_rotary_factor", raw.get("partial_rotary_factor"))
    rotary_dim = raw.get("rotary_dim")
    if partial is None and rotary_dim is None:
        _fail("partial_rotary_factor", "missing; without it (or rotary_dim) other programs rotate whole heads silently")
    if partial is not None and not isinstance(partial, int | float):
        _fail("partial_rotary_factor", f"{partial!r} is not allowed: a number in (0, 1] is")
    from_factor = None if partial is None else int(_positive_int(raw, "head_dim") * partial)
    if None not in (rotary_dim, from_factor) and rotary_dim != from_factor:
        _fail("rotary_dim", f"{rotary_dim} contradicts partial_rotary_factor {partial} ({from_factor} dimensions)")
    given["rotary_dim"] = rotary_dim if from_factor is None else from_factor
    if given["rope_type"] == "yarn" and given.get("factor") is None:
        _fail("rope_scaling.factor", "missing; YaRN needs it")
    return given


def _check_architecture(names: object) -> None:
    if names is not None and "BailingMoeV2ForCausalLM" not in (names if isinstance(names, list) else [names]):
        _fail("architectures", f"{names!r} is not allowed: ['BailingMoeV2ForCausalLM'] is")


def _positive_int(raw: dict[str, Any], name: str) -> int:
    value = raw.get(name)
    if not isinstance(value, int) or value < 1:
        _fail(name, "missing" if value is None else f"{value!r} is not allowed: a whole number above 0 is")
    return value


def _demand(is_met: bool, field: str, value: object, allowed: str) -> None:
    if not is_met:
        _fail(field, f"{value} is not allowed: {allowed} is")


def _fail(field: str, message: str) -> NoReturn:
    raise PydanticCustomError("field", "{field}: {message}", {"field": field, "message": message})


def _config_error(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    if first["type"] == "field":
        return ConfigError(str(first["ctx"]["field"]), str(first["ctx"]["message"]))
    parts = [str(part) for part in first["loc"] if part not in ("fp8", "compressed-tensors")]
    path = ".".join([_PUBLISHED.get(parts[0], parts[0]), *parts[1:]])
    if first["type"] == "missing":
        return ConfigError(path, "missing; it must be given, no default is safe")
    return ConfigError(path, f"{first['input']!r} is not allowed: {first['msg']}")
