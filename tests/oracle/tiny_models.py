"""Tiny random models: configuration, tensors, checkpoint folder, and how to load and run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_checkpoint import random_tensors, write_checkpoint
from benchmarks.shapes import shape_dict
from kernels.permute import Answers
from model.bailing import BailingModel
from model.batch import Batch, ModelOutput
from model.checkpoint import Target, load_model
from model.config import ModelConfig
from model.kv_cache import KVCache
from router.dispatch import Dispatcher, DispatchHandle, ExpertChoice
from router.load_stats import LoadStats
from router.local import LocalDispatcher
from router.placement import Placement

BLOCK_SIZE = 4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class TinyModel:
    """One random model. `tensors` are fp32, the same values in a checkpoint of either dtype."""

    config: ModelConfig
    folder: Path
    tensors: dict[str, Tensor]

    def load(self, dtype: torch.dtype = torch.float32, dispatcher: Dispatcher | None = None) -> BailingModel:
        """All experts on one rank."""
        placement = Placement.even(self.config.num_experts, 1)
        target = Target(dtype=dtype, device=CPU, placement=placement, rank=0)
        local = dispatcher or LocalDispatcher(self.config.num_experts)
        return load_model(self.folder, self.config, target=target, dispatcher=local)


def tiny_model(
    name: str | dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0
) -> TinyModel:
    """Write the model of a named shape, or of config.json contents, to a folder."""
    fields = shape_dict(name) if isinstance(name, str) else name
    write_checkpoint(folder, fields, dtype, seed=seed)
    config = ModelConfig.from_dir(folder)
    return TinyModel(config, folder, {s.name: t for s, t in random_tensors(config, torch.float32, seed)})


class RecordingDispatcher:
    """A local dispatcher that remembers the experts of each row of each MoE layer."""

    def __init__(self, num_experts: int) -> None:
        self.experts: list[list[set[int]]] = []
        self.local_load: LoadStats | None = None  # so that it is given what was chosen as any other
        self._local = LocalDispatcher(num_experts)

    def dispatch(self, hidden: Tensor, choice: ExpertChoice) -> tuple[DispatchHandle, Tensor]:
        """As the local one."""
        self.experts.append([set(ids) for ids in choice.ids.tolist()])
        return self._local.dispatch(hidden, choice)

    def combine(self, rows: Tensor, handle: DispatchHandle, plus: Tensor | None = None) -> Answers:
        """As the local one."""
        return self._local.combine(rows, handle, plus)


def kv_cache(model: BailingModel, num_blocks: int = 64, dtype: torch.dtype = torch.float32) -> KVCache:
    """An empty cache."""
    return KVCache(model.config, num_blocks, BLOCK_SIZE, dtype, CPU)


def ragged_batch(parts: Sequence[tuple[Sequence[int], int, Sequence[int]]]) -> Batch:
    """From (token ids, start position, block table) of each sequence; logits of every row."""
    tokens = [t for ids, _, _ in parts for t in ids]
    positions = [start + i for ids, start, _ in parts for i in range(len(ids))]
    slots = [
        table[(start + i) // BLOCK_SIZE] * BLOCK_SIZE + (start + i) % BLOCK_SIZE
        for ids, start, table in parts
        for i in range(len(ids))
    ]
    width = max((len(table) for _, _, table in parts), default=0)
    tables = [[*table, *[0] * (width - len(table))] for _, _, table in parts]
    starts = torch.tensor([0, *(len(ids) for ids, _, _ in parts)]).cumsum(0)
    return Batch(
        token_ids=torch.tensor(tokens, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int32),
        slots=torch.tensor(slots, dtype=torch.int32),
        row_starts=starts.to(torch.int32),
        context_lens=torch.tensor([start + len(ids) for ids, start, _ in parts], dtype=torch.int32),
        block_tables=torch.tensor(tables, dtype=torch.int32).view(len(parts), width),
        logit_rows=torch.arange(len(tokens)),
    )


def block_table(num_tokens: int, first_block: int = 0) -> list[int]:
    """Blocks in a row, as many as the tokens need."""
    return list(range(first_block, first_block + -(-num_tokens // BLOCK_SIZE)))


def run_prompt(model: BailingModel, token_ids: Sequence[int], dtype: torch.dtype = torch.float32) -> ModelOutput:
    """One sequence from an empty cache, in one shot, logits of every row."""
    batch = ragged_batch([(token_ids, 0, block_table(len(token_ids)))])
    return model.forward(batch, kv_cache(model, dtype=dtype))
