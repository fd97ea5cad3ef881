"""The engine without Ray and gRPC: `python -m examples.in_process`."""

from __future__ import annotations

from pathlib import Path

from cluster.offline import OfflineEngine
from engine.config import EngineConfig
from scheduler.request import SamplingParams

MODEL = Path(__file__).resolve().parent.parent / "models" / "sigmoe-demo"
FRAME = (
    "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>{question}<|role_end|><role>ASSISTANT</role>"
)
QUESTIONS = ("What is asthma?", "What are the symptoms of anemia?", "How is migraine treated?")


def main() -> None:
    """Answer all questions in one batch and print them in order."""
    engine = OfflineEngine.load(EngineConfig(model_dir=str(MODEL), max_sequences=8))
    prompts = [FRAME.format(question=question) for question in QUESTIONS]
    answers = sorted(
        engine.generate(prompts, SamplingParams(max_tokens=80, temperature=0.0)), key=lambda answer: answer.prompt_index
    )
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n  {answer.text}")


if __name__ == "__main__":
    main()
