"""What can be wrong with a checkpoint.

CheckpointError
└── ConfigError     a field of config.json (or of its quantization_config)
"""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be served. The message names the file and the tensor or field at fault."""


class ConfigError(CheckpointError):
    """A field of config.json that is missing or that this program cannot honour. `field` is its path."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"config.json: {field}: {message}")
        self.field = field
