"""A rank's model without its weights: tensors that have a dtype and a shape, and no memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.drafters.draft_model import DraftModel
from engine.drafters.proposal_sizes import head_folder
from kernels.quantise.formats import Scaling
from model.bailing import BailingModel
from model.config import ModelConfig
from model.eagle3 import build_eagle3
from model.eagle3_config import Eagle3Config
from model.eagle3_shapes import OPTIONAL, expected_shapes
from model.errors import CheckpointError
from model.linear import Linear
from model.quantization import BlockFp8
from model.safetensors_files import SafetensorsFiles
from model.tensors import expected_tensors, is_fp8
from scheduler.request import DraftMethod

META = torch.device("meta")


class Shapes:
    """A weight source that knows what a checkpoint holds, or of one that is not there what its config.json implies."""

    def __init__(self, folder: str | Path, config: ModelConfig, dtype: torch.dtype) -> None:
        self._config = config
        self._dtype = dtype
        self._specs = {spec.name: spec for spec in expected_tensors(config)}
        self._fp8 = {name for name, spec in self._specs.items() if is_fp8(spec, config)}
        try:
            with SafetensorsFiles(folder) as files:
                self._fp8 = {name for name, found in files.tensors.items() if found.dtype is torch.float8_e4m3fn}
        except CheckpointError:
            return  # compiling takes no checkpoint; loading says what is wrong with this one

    def plain(self, name: str) -> torch.Tensor:
        """See `WeightSource`."""
        return torch.empty(self._specs[name].shape, dtype=self._dtype, device=META)

    def scaling(self, names: Collection[str]) -> Scaling:
        """See `WeightSource`."""
        quantization = self._config.quantization
        if quantization is None or not names or not self._fp8.issuperset(names):
            return Scaling.NONE
        return Scaling.BLOCKS if isinstance(quantization, BlockFp8) else Scaling.CHANNELS

    def fp8(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """See `WeightSource`."""
        num_out, num_in = self._specs[name].shape
        assert self._config.quantization is not None, f"{name}: no quantization_config"
        scale_shape = self._config.quantization.scale_shape(num_out, num_in)
        weight = torch.empty(num_out, num_in, dtype=torch.float8_e4m3fn, device=META)
        return weight, torch.empty(scale_shape, dtype=torch.float32, device=META)

    def fp32(self, name: str) -> torch.Tensor:
        """See `WeightSource`."""
        return torch.empty(self._specs[name].shape, dtype=torch.float32, device=META)

    def order(self, names: Sequence[str]) -> Sequence[int]:
        """See `WeightSource`."""
        return range(len(names))


def draft_model_of(config: EngineConfig, model: BailingModel) -> DraftModel | None:
    """The draft model that a rank loads, of the dtype of the model's embedding."""
    if config.speculation.loaded is DraftMethod.MTP:
        return model.mtp
    if config.speculation.loaded is not DraftMethod.EAGLE3:
        return None
    head, target = Eagle3Config.from_dir(head_folder(config), model.config), model.config
    dtype = model.embedding.dtype
    shapes = expected_shapes(head, target)
    weights = {
        name: torch.empty(shape, dtype=dtype, device=META) for name, shape in shapes.items() if name not in OPTIONAL
    }
    own = torch.empty(shapes["embed_tokens.weight"], dtype=dtype, device=META)
    lm_head = Linear.pack(own if head.tie_word_embeddings else weights["lm_head.weight"])
    has_ids = head.draft_vocab_size != target.vocab_size
    target_ids = torch.empty(head.draft_vocab_size, dtype=torch.int64, device=META) if has_ids else None
    return build_eagle3(head, target, weights, own, lm_head, target_ids)
