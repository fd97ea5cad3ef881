"""What FP8 costs in numbers: next tokens and distributions of FP8 models against bf16, over the model's own answers.

    python -m benchmarks.fp8_numerics [--model models/sigmoe-demo] [--questions 64] [--out FILE]

The bf16 engine answers held-out questions greedily; every variant then reads the same talks, and each row that
predicts a token of an answer is compared with bf16. All run the torch references on the CPU, which quantise activations
as the FP8 kernels do and sum in fp32; the native kernels' bf16 shows what another order of sums alone does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.fp8_checkpoint import BLOCK, CHANNEL, quantise, write_checkpoint
from benchmarks.run import machine
from cluster.chat_template import ChatTemplate
from cluster.offline import OfflineEngine
from cluster.tokenizer import Tokenizer
from engine.config import EngineConfig
from kernels import native
from model.bailing import BailingModel
from model.checkpoint import Target, load_model
from model.config import ModelConfig
from model.errors import CheckpointError
from model.kv_cache import KVCache
from model.safetensors_files import SafetensorsFiles
from model.tensors import expected_tensors, is_fp8
from router.local import LocalDispatcher
from router.placement import Placement
from scheduler.request import FinishReason, SamplingParams
from sigmoe.loadtest.builtin import items
from training.draft.answers import Talk
from training.draft.data import batches, collate
from training.draft.target import TALK_BLOCK, whole_talks

ROOT = Path(__file__).resolve().parent.parent
SETS = ("medical", "medical-diseases")  # unseen by the draft head; about diseases unseen by the model
FORMATS = {"blocks": BLOCK, "channels": CHANNEL}
MAX_TOKENS = 96
_ROWS = 2048  # of one forward pass, padding included
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run the model."""

    name: str
    folder: Path
    dtype: torch.dtype = torch.bfloat16
    kernels: str = "torch"
    kv_dtype: torch.dtype | None = None  # None: as `dtype`
    keeps_fp8: bool = False  # FP8 weights stay, and quantise what they multiply; else they are dequantised


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far a variant is from bf16, over positions. KL(bf16 || variant) in nats."""

    num_positions: int
    top1_agreement: float
    mean_kl: float
    p99_kl: float
    max_kl: float

    @classmethod
    def between(cls, ours: Tensor, theirs: Tensor) -> Distance:
        """Of bf16's logits `ours` and a variant's `theirs`, both [N, V]."""
        kl = torch.cat([_kl(a, b) for a, b in zip(ours.split(512), theirs.split(512), strict=True)])
        return cls(
            num_positions=len(kl),
            top1_agreement=float((ours.argmax(1) == theirs.argmax(1)).double().mean()),
            mean_kl=float(kl.mean()),
            p99_kl=float(kl.quantile(0.99)),
            max_kl=float(kl.max()),
        )


def _kl(ours: Tensor, theirs: Tensor) -> Tensor:
    p, q = ours.double().log_softmax(1), theirs.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def answer(model: Path, questions: str, num_questions: int, max_tokens: int) -> list[Talk]:
    """The first questions of a built-in set, with the bf16 engine's greedy answers."""
    template, tokenizer = ChatTemplate.from_dir(model), Tokenizer.from_dir(model)
    asked = [list(item.rounds[0]) for item in items(questions)[:num_questions]]
    prompts = [tokenizer.encode_now(template.render(messages)) for messages in asked]
    engine = OfflineEngine.load(EngineConfig(model_dir=str(model), max_sequences=64, max_context=1024))
    talks: dict[int, Talk] = {}
    for said in engine.generate(prompts, SamplingParams(max_tokens=max_tokens, temperature=0.0)):
        assert said.finish_reason is not FinishReason.ERROR, said.error
        prompt = prompts[said.prompt_index]
        talks[said.prompt_index] = Talk(np.array([*prompt, *said.token_ids], dtype=np.int64), len(prompt))
    return [talks[index] for index in range(len(prompts))]


def read_tensors(model: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint as it is stored."""
    with SafetensorsFiles(model) as files:
        return {spec.name: files.read(spec.name) for spec in expected_tensors(ModelConfig.from_dir(model))}


def write_fp8(model: Path, folder: Path, name: str) -> ModelConfig:
    """An FP8 copy, in one of `FORMATS`, of a checkpoint; returns its configuration."""
    fields = json.loads((model / "config.json").read_text(encoding="utf-8")) | {"quantization_config": FORMATS[name]}
    config = ModelConfig.from_dict(fields)
    write_checkpoint(folder, fields, quantise(config, read_tensors(model))[0])
    return config


def logits(variant: Variant, talks: Sequence[Talk]) -> Tensor:
    """[N, V] fp32: of the rows that predict the tokens of the answers. The process is left with the kernels "auto"."""
    found = []
    try:
        model = _load(variant)
        for group in batches(talks, max_tokens=_ROWS, max_length=1024):
            talk = collate(group)
            batch = whole_talks(talk.tokens, talk.lengths, torch.device("cpu"))
            starts = batch.row_starts.tolist()
            rows = [
                torch.arange(first + t.answer_start, end) - 1
                for t, first, end in zip(group, starts, starts[1:], strict=False)
            ]
            kv = KVCache(model.config, batch.block_tables.numel(), TALK_BLOCK, variant.kv_dtype or variant.dtype, _CPU)
            found.append(model.forward(dataclasses.replace(batch, logit_rows=torch.cat(rows)), kv).logits)
    finally:
        native.use("auto")
    return torch.cat(found)


def _load(variant: Variant) -> BailingModel:
    """A model, with its kernels chosen."""
    config = ModelConfig.from_dir(variant.folder)
    target = Target(dtype=variant.dtype, device=_CPU, placement=Placement.even(config.num_experts, 1), rank=0)
    with triton.knobs.runtime.scope():
        if variant.keeps_fp8:  # weights lie as the kernels chosen at loading read them: Triton's leave FP8 alone
            triton.knobs.runtime.interpret = True  # none of them will run
        native.use("triton" if variant.keeps_fp8 else variant.kernels)
        model = load_model(variant.folder, config, target=target, dispatcher=LocalDispatcher(config.num_experts))
    native.use(variant.kernels)
    return model


def variants(model: Path, folder: Path) -> list[Variant]:
    """What is compared with bf16; FP8 checkpoints lie in `folder`."""
    made = [
        Variant(name="bf16, native kernels", folder=model, kernels="native"),
        Variant(name="fp32", folder=model, dtype=torch.float32),
        Variant(name="FP8 KV cache", folder=model, kv_dtype=torch.float8_e4m3fn),
    ]
    for name in FORMATS:
        made.append(Variant(name=f"FP8 {name}", folder=folder / name, keeps_fp8=True))
        made.append(Variant(name=f"FP8 {name}, weights only", folder=folder / name))
    both = Variant(name="FP8 blocks and KV cache", folder=folder / "blocks", keeps_fp8=True)
    made.append(dataclasses.replace(both, kv_dtype=torch.float8_e4m3fn))
    return made


def kept(config: ModelConfig) -> list[str]:
    """Matrices that stay bf16 in an FP8 copy, layers left out."""
    names = [s.name for s in expected_tensors(config) if len(s.shape) == 2 and not is_fp8(s, config)]
    return sorted({name.split(".", 3)[-1] if "layers" in name else name for name in names})


def measure(model: Path, num_questions: int, console: Console) -> dict[str, object]:
    """Every variant over every set."""
    with TemporaryDirectory() as scratch:
        configs = [write_fp8(model, Path(scratch) / name, name) for name in FORMATS]
        talks = {name: answer(model, name, num_questions, MAX_TOKENS) for name in SETS}
        found: dict[str, dict[str, Distance]] = {name: {} for name in SETS}
        for name in SETS:
            bf16 = logits(Variant(name="bf16", folder=model), talks[name])
            for variant in variants(model, Path(scratch)):
                found[name][variant.name] = Distance.between(bf16, logits(variant, talks[name]))
                console.print(f"{name}, {variant.name}: {found[name][variant.name]}", highlight=False)
    console.print(table(found))
    return {
        "machine": machine(),
        "model": model.name,
        "questions_of_a_set": num_questions,
        "max_tokens": MAX_TOKENS,
        "kept_bf16": kept(configs[0]),
        "against_bf16": {name: {key: asdict(value) for key, value in row.items()} for name, row in found.items()},
    }


def table(found: dict[str, dict[str, Distance]]) -> Table:
    """A row per set and variant."""
    shown = Table("questions", "against bf16", "positions", "same top token", "KL mean", "p99", "max")
    for name, row in found.items():
        for variant, d in row.items():
            figures = (f"{d.top1_agreement:.2%}", f"{d.mean_kl:.5f}", f"{d.p99_kl:.4f}", f"{d.max_kl:.3f}")
            shown.add_row(name, variant, str(d.num_positions), *figures)
    return shown


def main() -> None:
    """Command line; writes JSON, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "sigmoe-demo")
    parser.add_argument("--questions", type=int, default=64, help="of each set, at most")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.questions < 1:
        parser.error(f"--questions: {options.questions} is not 1 or more")
    try:
        quantization = ModelConfig.from_dir(options.model).quantization
    except CheckpointError as error:
        parser.error(f"--model: {error}")
    if quantization is not None:
        parser.error(f"--model: {options.model} is FP8 already; give a bf16 checkpoint")
    report = measure(options.model, options.questions, Console(width=140))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
