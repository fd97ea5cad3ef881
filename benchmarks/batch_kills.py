"""Kill a batch job again and again, submit it again, and compare its output with that of one that was left alone.

    python -m benchmarks.batch_kills [--model models/sigmoe-demo] [--lines 3000] [--kills 5] [--seed 0]

Each run is a job of its own (`ray job submit`) with two ranks of its own, greedy. It dies at a random number of
answers, by SIGKILL of its driver or by `ray job stop`, in turn, and once by SIGKILL while Ray Data writes its output.
Prints JSON, and ends with 1 where the outputs differ, where actors or placement groups of a job that died are still
there after a minute, or files of it at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ray_head import DEADLINE_S, RayHead, driver_of, ray_head

_LEFTOVERS_S = 60.0
_SUBJECTS = ("asthma", "gout", "a migraine", "anemia", "eczema", "sepsis", "a stroke", "scurvy", "malaria", "croup")


def write_input(path: Path, num_lines: int) -> None:
    """Short greedy chats; padding and log-probabilities make blocks of them and of the answers, for Ray Data."""
    note = "x" * (18 * 2**20 // num_lines)
    with path.open("w") as file:
        for index in range(num_lines):
            text = f"What is {_SUBJECTS[index % len(_SUBJECTS)]}? Case {index}."
            body: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 8 + index % 25}
            body |= {"temperature": 0, "logprobs": True, "top_logprobs": 20}
            line = {"custom_id": f"case-{index}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps(line | {"body": body | {"metadata": {"note": note}}}) + "\n")


def command(model: Path, source: Path, out: Path) -> list[str]:
    """One run of the job."""
    ranks = ["--ranks", "2", "--set", "engine.threads_per_rank=1", "--set", "model.dtype=float32"]
    return ["sigmoe", "batch", "--input", str(source), "--output", str(out), "--model", str(model.resolve()), *ranks]


def num_answered(out: Path) -> int:
    """Lines in the journal."""
    return sum(path.read_bytes().count(b"\n") for path in Path(f"{out}.journal").glob("[0-9]*.jsonl"))


def is_written(out: Path) -> bool:
    """Whether a job is about to write the output."""
    return out.with_name(f".{out.name}.tmp").exists()


def kill(head: RayHead, name: str, out: Path, at: int | None) -> dict[str, Any]:
    """Let the job run until it has answered so many lines, or writes its output, end it, and see what it leaves."""
    give_up = time.monotonic() + DEADLINE_S
    while not (is_written(out) if at is None else num_answered(out) >= at):
        if out.exists() or time.monotonic() > give_up:
            return {"wanted_at": at, "by": "nobody: it had ended", "left": []}
        time.sleep(0.01)
    by = "ray job stop" if at is not None and name.endswith(("1", "3", "5", "7", "9")) else "SIGKILL"
    driver = driver_of(out)
    if by == "SIGKILL" and driver is not None:
        driver.kill()
    else:
        head.ray("job", "stop", name)
    give_up = time.monotonic() + _LEFTOVERS_S
    while (left := head.leftovers()) and time.monotonic() < give_up:
        time.sleep(0.5)
    return {"wanted_at": at, "by": by, "answered": num_answered(out), "left": left}


def answers(out: Path) -> list[tuple[str, str, int]]:
    """(id, text, tokens) of each line."""
    found = []
    for line in out.read_text().splitlines():
        answer = json.loads(line)
        if answer["error"] is not None:
            raise RuntimeError(f"{answer['custom_id']}: {answer['error']}")
        body = answer["response"]["body"]
        text = body["choices"][0]["message"]["content"]
        found.append((answer["custom_id"], text, body["usage"]["completion_tokens"]))
    return found


def finish(head: RayHead, name: str, words: list[str]) -> dict[str, Any]:
    """Submit and wait; the job's summary. Raises RuntimeError where it fails."""
    done = head.submit(name, *words)
    printed = [line for line in done.stdout.splitlines() if line.startswith('{"event"')]
    if done.returncode or not printed:
        raise RuntimeError(f"{shlex.join(words)}: {done.stdout}{done.stderr}")
    summary: dict[str, Any] = json.loads(printed[-1])
    return summary


def main() -> int:
    """Run both, compare, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/sigmoe-demo"))
    parser.add_argument("--lines", type=int, default=3000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    points = [*sorted(draw.sample(range(1, options.lines * 9 // 10), options.kills)), None]
    with tempfile.TemporaryDirectory() as place, ray_head() as head:
        source, killed, calm = (Path(place) / name for name in ("in.jsonl", "killed.jsonl", "calm.jsonl"))
        write_input(source, options.lines)
        deaths = []
        for number, point in enumerate(points):
            head.submit(f"killed-{number}", *command(options.model, source, killed), wait=False)
            deaths.append(kill(head, f"killed-{number}", killed, point))
        last = finish(head, "killed-last", command(options.model, source, killed))
        alone = finish(head, "calm", command(options.model, source, calm))
        found, expected = answers(killed), answers(calm)
        files = sorted(path.name for path in Path(place).iterdir())
        output_mb = round(killed.stat().st_size / 1e6)
    is_ordered = [entry[0] for entry in found] == [f"case-{index}" for index in range(options.lines)]
    is_clean = not any(death["left"] for death in deaths) and files == ["calm.jsonl", "in.jsonl", "killed.jsonl"]
    is_right = found == expected and is_ordered and is_clean
    report = {"lines": options.lines, "output_mb": output_mb, "deaths": deaths, "last": last, "calm": alone}
    print(json.dumps(report | {"is_ordered": is_ordered, "is_equal": found == expected, "is_clean": is_clean}))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
