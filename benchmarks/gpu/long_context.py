"""One sequence as long as the model takes them: a decode over a bf16 and over an FP8 cache."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.gpu.clock import eager_ms, graph_ms
from benchmarks.gpu.full_model import FullModel
from benchmarks.gpu.session import Figures, Session
from benchmarks.gpu.steps import BLOCK_SIZE, blocks_of, make_batch
from model.kv_cache import KVCache


def measure_long_context(session: Session, model: FullModel) -> Figures:
    """Both caches hold random keys and values; the FP8 one takes half the memory of the other."""
    loaded = model.loaded
    num_tokens = (loaded.kv.num_blocks - 1) * BLOCK_SIZE  # the last block holds what padding wrote, numbers or not
    context = min(loaded.config.max_context, num_tokens)
    fp8 = KVCache(loaded.config, blocks_of(context), BLOCK_SIZE, torch.float8_e4m3fn, session.device)
    for layer in fp8.layers:
        for cache in (layer.key, layer.value):
            cache.copy_(torch.randn(cache.shape))
    runs = {name: partial(_decode, session, model, kv, context) for name, kv in {"bf16": loaded.kv, "fp8": fp8}.items()}
    return session.each(runs, needed_s=5.0)


def _decode(session: Session, model: FullModel, kv: KVCache, context: int) -> Figures:
    loaded, repeats = model.loaded, model.plan.repeats
    batch = make_batch(1, context, 1, loaded.config.vocab_size, 1)
    run = partial(loaded.model.forward, batch, kv)
    found: Figures = {
        "ok": bool(run().logits.isfinite().all()),
        "context": context,
        "kv_bytes": kv.num_bytes * context // (kv.num_blocks * BLOCK_SIZE),
        "eager": {"ms": eager_ms(run, repeats)},
    }
    if session.is_cuda:
        found["graph"] = {"ms": graph_ms(run, repeats)}
    return found
