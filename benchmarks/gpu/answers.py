"""The engine itself on the device: the shipped model's answers beside those of the CPU's kernels.

In fp32 the tokens must be the CPU's, with and without graphs and drafts; greedy or drawn with a seed. In bf16 speeds
and the share of equal tokens are told: another order of sums decides ties otherwise.
"""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.clock import as_in_a_rank
from benchmarks.gpu.session import Figures, Session
from engine.build import build_engine
from engine.config import EngineConfig, GraphConfig, GraphUse, KernelChoice, Precision, SpeculationConfig
from engine.engine import Engine
from kernels import native
from scheduler.request import DraftMethod, Request, SamplingParams

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "sigmoe-demo"
_GREEDY = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)
_DRAWN = SamplingParams(max_tokens=64, temperature=0.8, top_p=0.95, top_k=40, ignore_eos=True)
_SEQUENCES = 8
_CHUNK_PROMPT = 300  # tokens: a prefill of several chunk tiles

Tokens = list[tuple[int, ...]]


def check_answers(session: Session) -> Figures:
    """All variants against one reference."""
    device = session.device.type
    base = EngineConfig(model_dir=str(SHIPPED), max_context=1024, max_sequences=_SEQUENCES, num_blocks=4096)
    kernels = KernelChoice.TRITON if session.is_cuda else KernelChoice.TORCH  # in the interpreter it takes an hour
    base = dataclasses.replace(base, device=device, graphs=_graphs(session), kernels=kernels)
    exact = dataclasses.replace(base, precision=Precision.FP32)
    eager = dataclasses.replace(exact, graphs=GraphConfig(use=GraphUse.OFF))
    requests = _requests(session)
    reference = dataclasses.replace(eager, device="cpu", kernels=KernelChoice.AUTO)
    with as_in_a_rank():
        wanted = _answers(build_engine(reference), requests)
    fixed = {f"fp32, {method.value}": _drafting(exact, method, adaptive=False) for method in DraftMethod}
    variants = {"fp32, no graphs": eager, **fixed}
    if session.tiny:
        variants = {"fp32, eagle3": fixed["fp32, eagle3"]}
    else:
        variants |= {
            "bf16, none": _drafting(base, DraftMethod.NONE, adaptive=False),
            "bf16, eagle3": _drafting(base, DraftMethod.EAGLE3, adaptive=False),
            "bf16, eagle3, adaptive": _drafting(base, DraftMethod.EAGLE3, adaptive=True),
        }
    try:
        with as_in_a_rank():
            return session.each({n: partial(_variant, config, requests, wanted) for n, config in variants.items()})
    finally:
        native.use("triton")


def _graphs(session: Session) -> GraphConfig:
    return GraphConfig(use=GraphUse.AUTO if session.is_cuda else GraphUse.UNRECORDED, max_sequences=_SEQUENCES)


def _drafting(base: EngineConfig, method: DraftMethod, *, adaptive: bool) -> EngineConfig:
    speculation = SpeculationConfig(method=method, max_drafts=3, adaptive=adaptive)
    return dataclasses.replace(base, speculation=speculation)


def _requests(session: Session) -> list[Request]:
    """Questions as the model knows them are not needed: any bytes are tokens, and equality is what is asked."""
    count, most = (2, 2) if session.tiny else (_SEQUENCES, 64)
    made = []
    for index in range(count):
        length = _CHUNK_PROMPT if index == 1 and not session.tiny else 5 + 3 * index
        prompt = tuple((31 * index + 7 * place + place * place) % 250 + 3 for place in range(length))
        sampling = dataclasses.replace(_DRAWN if index % 2 else _GREEDY, seed=index, max_tokens=most)
        made.append(Request(request_id=str(index), prompt=prompt, sampling=sampling))
    return made


def _variant(config: EngineConfig, requests: list[Request], wanted: Tokens) -> Figures:
    """Answers of one engine, all at once and one alone, and how fast they came."""
    engine = build_engine(config)
    got = _answers(engine, requests)
    same = sum(ours == theirs for ours, theirs in zip(got, wanted, strict=True))
    told = {"same_answers": f"{same} of {len(wanted)}"}
    if config.precision is Precision.FP32:
        return {"ok": same == len(wanted)} | told
    _answers(engine, requests[:1])  # compiles what one alone needs
    return told | {"tokens_s_together": _tokens_s(engine, requests), "tokens_s_alone": _tokens_s(engine, requests[:1])}


def _tokens_s(engine: Engine, requests: list[Request]) -> float:
    """Of the answers, prompts included."""
    start_s = time.perf_counter()
    num_tokens = sum(map(len, _answers(engine, requests)))
    return num_tokens / (time.perf_counter() - start_s)


def _answers(engine: Engine, requests: list[Request]) -> Tokens:
    """Step until all have ended."""
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for delta in engine.step():
            tokens[delta.request_id].extend(delta.token_ids)
    return [tuple(tokens[request.request_id]) for request in requests]
