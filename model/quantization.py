"""The two FP8 formats in which the family's checkpoints are published (model-spec §4): what they say of themselves.

Both hold linears as float8_e4m3fn with scales that multiply; anything else is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

FP8_BLOCK = 128  # rows and columns that share one scale of the block-wise format


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class BlockFp8(_Part):
    """Block-wise: `X.weight_scale_inv` fp32 [ceil(N / 128), ceil(K / 128)]."""

    quant_method: Literal["fp8"]
    fmt: Literal["e4m3"] = "e4m3"
    activation_scheme: Literal["dynamic"] = "dynamic"
    weight_block_size: tuple[Literal[128], Literal[128]]

    @property
    def scale_suffix(self) -> str:
        """What a scale's name ends in, where its weight's ends in `weight`."""
        return "weight_scale_inv"

    def scale_shape(self, num_out: int, num_in: int) -> tuple[int, int]:
        """Shape of the scales of a weight [N, K]."""
        return -(-num_out // FP8_BLOCK), -(-num_in // FP8_BLOCK)


class _ChannelWeights(_Part):
    num_bits: Literal[8]
    type: Literal["float"]
    symmetric: Literal[True] = True
    strategy: Literal["channel"]
    dynamic: Literal[False] = False


class _TokenActivations(_Part):
    num_bits: Literal[8]
    type: Literal["float"]
    symmetric: Literal[True] = True
    strategy: Literal["token"]
    dynamic: Literal[True]


class _ChannelGroup(_Part):
    weights: _ChannelWeights
    input_activations: _TokenActivations | None = None
    output_activations: None = None


class ChannelFp8(_Part):
    """compressed-tensors, one scale per output channel: `X.weight_scale` bf16 or fp32 [N, 1]."""

    quant_method: Literal["compressed-tensors"]
    format: Literal["float-quantized"]
    config_groups: dict[str, _ChannelGroup] = Field(min_length=1)
    kv_cache_scheme: None = None

    @property
    def scale_suffix(self) -> str:
        """What a scale's name ends in, where its weight's ends in `weight`."""
        return "weight_scale"

    def scale_shape(self, num_out: int, num_in: int) -> tuple[int, int]:
        """Shape of the scales of a weight [N, K]."""
        return num_out, 1


Quantization = Annotated[BlockFp8 | ChannelFp8, Field(discriminator="quant_method")]
