"""What the gateway knows of the checkpoint: its facts, tokenizer, chat template and generation defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.chat_template import ChatTemplate
from cluster.tokenizer import Tokenizer
from model.config import ModelConfig
from model.errors import CheckpointError
from model.strict_json import read_object


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling where a request says nothing: the checkpoint's generation_config.json, then the plain values."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_dir(cls, model_dir: Path) -> GenerationDefaults:
        """Read generation_config.json if it is there. Raises CheckpointError that names the field."""
        file = model_dir / "generation_config.json"
        fields = read_object(file) if file.exists() else {}
        top_k = _number(fields, "top_k", file, least=-1, most=2**31 - 1, default=0)
        return cls(
            temperature=_number(fields, "temperature", file, least=0, most=100, default=1.0),
            top_k=max(0, int(top_k)),  # some write -1 for "all"
            top_p=_number(fields, "top_p", file, least=1e-6, most=1, default=1.0),
            min_p=_number(fields, "min_p", file, least=0, most=1, default=0.0),
            repetition_penalty=_number(fields, "repetition_penalty", file, least=1e-6, most=100, default=1.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One checkpoint as clients see it."""

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: GenerationDefaults

    @classmethod
    def from_dir(cls, model_dir: Path, name: str = "") -> ServedModel:
        """Read everything but the weights. Raises CheckpointError that names the file at fault."""
        return cls(
            name=name or model_dir.resolve().name,
            config=ModelConfig.from_dir(model_dir),
            tokenizer=Tokenizer.from_dir(model_dir),
            template=ChatTemplate.from_dir(model_dir),
            defaults=GenerationDefaults.from_dir(model_dir),
        )


def _number(fields: Mapping[str, Any], name: str, file: Path, *, least: float, most: float, default: float) -> float:
    value = fields.get(name)
    if value is None:
        return default
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most:
        raise CheckpointError(f"{file}: {name}: {value!r} is not allowed: a number from {least:g} to {most:g} is")
    return float(value)
