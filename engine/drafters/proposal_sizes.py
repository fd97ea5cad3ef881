"""What drawn drafts add to a rank's memory. No torch: a capacity plan asks for it, too."""

from __future__ import annotations

from pathlib import Path

from engine.config import EAGLE3_FOLDER, Acceptance, EngineConfig
from model.config import ModelConfig
from model.eagle3_config import Eagle3Config
from model.proposal_sizes import kept_bytes, verification_bytes
from scheduler.request import DraftMethod


def proposal_bytes(config: EngineConfig, model: ModelConfig) -> int:
    """Most bytes that drawn drafts take, kept until they are verified and then verified; 0 where none are drawn."""
    speculation = config.speculation
    if speculation.acceptance is not Acceptance.REJECTION or not speculation.loaded.has_kv:
        return 0
    draft_vocab_size = model.vocab_size
    if speculation.loaded is DraftMethod.EAGLE3:
        draft_vocab_size = Eagle3Config.from_dir(head_folder(config), model).draft_vocab_size
    kept = kept_bytes(config.max_sequences, speculation.max_drafts, draft_vocab_size)
    return kept + verification_bytes(model.vocab_size)


def head_folder(config: EngineConfig) -> Path:
    """Where the EAGLE3 head lies."""
    return Path(config.speculation.draft_dir or Path(config.model_dir) / EAGLE3_FOLDER)
