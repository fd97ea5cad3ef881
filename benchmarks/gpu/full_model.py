"""The whole model on the device: decode, verify, prefill, and where a step's time goes.

Forward passes as the engine makes them, launched one after the other ("eager"), and replayed from a CUDA graph, which
is the device's work alone. The engine's scheduling and its sampling are not in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu.bandwidth import measured_gb_s
from benchmarks.gpu.breakdown import by_kernel
from benchmarks.gpu.clock import as_in_a_rank, eager_ms, graph_ms
from benchmarks.gpu.plans import Plan
from benchmarks.gpu.random_model import cut, layers_that_fit, random_head, random_model, weight_sizes
from benchmarks.gpu.session import Figures, Session
from benchmarks.gpu.steps import BLOCK_SIZE, WatchedDispatcher, blocks_of, make_batch, step_bytes, step_flop
from benchmarks.gpu.whole_steps import WholeSteps, most_positions
from benchmarks.kernels.machines import this_machine
from engine.graphs.buckets import Buckets
from model.bailing import BailingModel
from model.batch import Batch
from model.config import ModelConfig
from model.kv_cache import KVCache
from router.local import LocalDispatcher

NUM_DRAFTS = 3
_WORKSPACE_BYTES = 12 << 30  # of a chunk's activations, a graph's pool and the logits
_DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model with its cache."""

    config: ModelConfig
    model: BailingModel
    kv: KVCache
    dispatcher: WatchedDispatcher


class FullModel:
    """The phases that share one model, which the first of them builds."""

    def __init__(self, session: Session, plan: Plan) -> None:
        self._session = session
        self.plan = plan
        self._loaded: Loaded | None = None

    def build(self) -> Figures:
        """Draw the weights on the device, as many layers as fit beside the cache."""
        plan, device = self.plan, self._session.device
        kv_tokens = max(*plan.prompts, plan.batches[-1] * self._most_blocks * BLOCK_SIZE)
        whole = ModelConfig.from_dict(plan.fields).num_hidden_layers
        num_layers = whole
        if self._session.is_cuda:
            torch.cuda.empty_cache()
            free_bytes = torch.cuda.mem_get_info(device)[0] - _WORKSPACE_BYTES
            num_layers = layers_that_fit(plan.fields, _DTYPE, free_bytes, kv_tokens)
        config = cut(plan.fields, num_layers)
        dispatcher = WatchedDispatcher(LocalDispatcher(config.num_experts, device))
        model = random_model(config, _DTYPE, device, dispatcher, self._session.seed)
        kv = KVCache(config, blocks_of(kv_tokens) + 1, BLOCK_SIZE, _DTYPE, device)  # the last is for padding
        for layer in kv.layers:
            layer.key.normal_()
            layer.value.normal_()
        self._loaded = Loaded(config=config, model=model, kv=kv, dispatcher=dispatcher)
        is_whole = num_layers == whole
        return {
            "layers": num_layers,
            "layers_of_the_model": whole,
            "said_plainly": "all layers" if is_whole else f"{num_layers} of {whole} layers fit; see scaled_ms",
            "weight_bytes": sum(weight_sizes(config, _DTYPE).values()),
            "kv_bytes": kv.num_bytes,
        }

    @property
    def loaded(self) -> Loaded:
        """The model and its cache, once built."""
        if self._loaded is None:
            raise RuntimeError("the model was not built")
        return self._loaded

    def release(self) -> Figures:
        """Give the memory back."""
        self._loaded = None
        if self._session.is_cuda:
            torch.cuda.empty_cache()
        return {}

    def decode(self) -> Figures:
        """One row of each sequence."""
        return self._steps(1)

    def verify(self) -> Figures:
        """The drafts of each sequence and the row before them, every row scored."""
        return self._steps(1 + NUM_DRAFTS)

    def steps(self) -> Figures:
        """The runner's whole steps: plan, forward pass, sampling, tokens on the host; with and without graphs."""
        loaded, plan = self.loaded, self.plan
        # The interpreter is slow: it runs one size, in a bucket that is too large for it.
        sizes, room = (plan.batches, plan.batches) if self._session.is_cuda else (plan.batches[:1], plan.batches[-1:])
        buckets = Buckets(sequences=room, rows=(1, 1 + NUM_DRAFTS))
        with as_in_a_rank():
            head = random_head(loaded.model, plan.draft_fields, _DTYPE, self._session.seed)
            whole = WholeSteps(self._session, loaded.model, head, loaded.kv, buckets, self._most_blocks)
            runs = {
                f"batch {size}, {rows} rows": partial(whole.measure, size, plan.context, rows, plan.repeats)
                for size in sizes
                for rows in buckets.rows
            }
            return {"recording_s": whole.recording_s} | self._session.each(runs, needed_s=5.0)

    @property
    def _most_blocks(self) -> int:
        """Of one sequence in any step."""
        return blocks_of(most_positions(self.plan.context, 1 + NUM_DRAFTS, self.plan.repeats))

    def prefill(self) -> Figures:
        """Prompts in chunks, one sequence; the last row's logits."""
        runs = {f"{prompt} tokens": partial(self._prompt, prompt) for prompt in self.plan.prompts}
        return self._session.each(runs, needed_s=5.0)

    def breakdown(self) -> Figures:
        """Time by kernel of eager steps, from the profiler."""
        plan = self.plan
        sizes = (plan.batches[0], plan.batches[-1]) if self._session.is_cuda else plan.batches[:1]
        runs = {f"decode, batch {size}": partial(self._profiled, size, plan.context, 1) for size in sizes} | {
            f"prefill, {plan.prompts[0]} tokens": partial(self._profiled, 1, plan.prompts[0], plan.prompts[0])
        }
        return self._session.each(runs, needed_s=5.0)

    def _steps(self, rows: int) -> Figures:
        runs = {f"batch {size}": partial(self._step, size, rows) for size in self.plan.batches}
        return self._session.each(runs, needed_s=5.0)

    def _step(self, num_sequences: int, rows: int) -> Figures:
        loaded = self.loaded
        context = self.plan.context + rows
        batch = make_batch(num_sequences, context, rows, loaded.config.vocab_size, rows)
        logits, num_experts_read = self._watched(batch)
        num_bytes = step_bytes(loaded.config, batch, num_experts_read)
        run = partial(loaded.model.forward, batch, loaded.kv)
        found: Figures = {
            "ok": bool(logits.isfinite().all()),
            "rows_of_each": rows,
            "context": context,
            "experts_read": num_experts_read,
            "num_bytes": num_bytes,
            "eager": self._speed(eager_ms(run, self.plan.repeats), num_sequences, batch, num_bytes),
        }
        if not self._session.is_cuda:
            return found | {"graph_absent": "CUDA graphs need a CUDA device"}
        try:
            found["graph"] = self._speed(graph_ms(run, self.plan.repeats), num_sequences, batch, num_bytes)
        except Exception as error:  # what waits for the host cannot be captured; the eager figures stand
            found["graph_absent"] = f"{type(error).__name__}: {error}"
        return found

    def _speed(self, ms: float, num_sequences: int, batch: Batch, num_bytes: int) -> Figures:
        gb_s = num_bytes / ms / 1e6
        found: Figures = {"ms": ms, "sequences_s": num_sequences / ms * 1e3, "gb_s": gb_s}
        measured = measured_gb_s(self._session)
        if measured is not None:
            found["of_measured_bandwidth"] = gb_s / measured
        if self._session.is_cuda:
            found["of_datasheet_bandwidth"] = gb_s / this_machine().gb_s
        return found | self._scaled(ms, len(batch.logit_rows))

    def _scaled(self, ms: float, num_logit_rows: int, passes: int = 1) -> Figures:
        """What all layers would take, where some had no room: the head as it is, the rest by the number of layers."""
        loaded, whole = self.loaded, int(self.plan.fields["num_hidden_layers"])
        if loaded.config.num_hidden_layers == whole:
            return {}
        hidden = torch.randn(num_logit_rows, loaded.config.hidden_size, dtype=_DTYPE)
        head_ms = passes * eager_ms(lambda: loaded.model.lm_head(hidden), self.plan.repeats)
        per_layer_ms = max(ms - head_ms, 0.0) / loaded.config.num_hidden_layers
        return {
            "scaled_ms": head_ms + per_layer_ms * whole,
            "scaled_how": f"estimate: the head's {head_ms:.3f} ms as they are, the rest times {whole} over "
            f"{loaded.config.num_hidden_layers}; the dense layers count as the others do",
        }

    def _prompt(self, prompt: int) -> Figures:
        loaded, chunk = self.loaded, min(self.plan.chunk, prompt)
        starts = range(0, prompt, chunk)
        batches = [
            make_batch(1, min(start + chunk, prompt), min(chunk, prompt - start), loaded.config.vocab_size, 1)
            for start in starts
        ]

        def run() -> torch.Tensor:
            return [loaded.model.forward(batch, loaded.kv).logits for batch in batches][-1]

        is_finite = bool(run().isfinite().all())
        ms = eager_ms(run, min(self.plan.repeats, 3))
        tflop_s = step_flop(loaded.config, prompt, prompt) / ms / 1e9
        peak = this_machine().tflop_s.get(torch.float8_e4m3fn)
        found: Figures = {"ok": is_finite, "chunk": chunk, "ms": ms, "tokens_s": prompt / ms * 1e3, "tflop_s": tflop_s}
        if peak:
            found["of_datasheet_fp8_tflop_s"] = tflop_s / peak
        return found | self._scaled(ms, 1, len(batches))

    def _profiled(self, num_sequences: int, context: int, rows: int) -> Figures:
        loaded = self.loaded
        batch = make_batch(num_sequences, context, rows, loaded.config.vocab_size, 1)
        loaded.model.forward(batch, loaded.kv)
        return by_kernel(lambda: loaded.model.forward(batch, loaded.kv), self.plan.repeats)

    def _watched(self, batch: Batch) -> tuple[torch.Tensor, int]:
        """Logits, and how many experts all layers read together."""
        loaded = self.loaded
        with loaded.dispatcher.watching() as counts:
            logits = loaded.model.forward(batch, loaded.kv).logits
        return logits, sum(int((part > 0).sum()) for part in counts)
