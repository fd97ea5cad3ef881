"""Starts `sigmoe batch` as a user would, and kills it as an operator would."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE_S = 90.0


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "sigmoe.cli", "batch", *options]


async def started(*options: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command(*options), cwd=ROOT, stdout=pipe, stderr=pipe)


async def run(*options: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a job that ends by itself."""
    process = await started(*options)
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def kill_at(num_lines: int, journal: Path, *options: str) -> None:
    """Run until the journal has so many lines, then SIGKILL."""
    process = await started(*options)
    async with asyncio.timeout(DEADLINE_S):
        while num_written(journal) < num_lines and process.returncode is None:
            await asyncio.sleep(0.005)
    assert process.returncode is None, f"ended before it was killed: {await process.communicate()}"
    process.kill()
    await process.communicate()


def num_written(journal: Path) -> int:
    """Lines in all segments, torn ones too."""
    return sum(path.read_bytes().count(b"\n") for path in journal.glob("[0-9]*.jsonl"))


def write_input(path: Path, count: int, max_tokens: int = 20, padding: int = 0, **more: Any) -> None:
    """Greedy chats, and every tenth line something wrong; `padding` characters make each line so much longer."""
    with path.open("w") as file:
        for index in range(count):
            body: dict[str, Any] = {"messages": [{"role": "user", "content": f"What is asthma? {index}"}]}
            body |= {"max_tokens": max_tokens, "temperature": 0, **more}
            if padding:
                body["metadata"] = {"note": padding * "x"}
            if index % 10 == 3:
                body["temperature"] = "hot"
            line = {"custom_id": f"q{index}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def answers(path: Path) -> list[Any]:
    """The output without what differs from run to run."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["response"] is not None:
            del line["response"]["request_id"], line["response"]["body"]["id"], line["response"]["body"]["created"]
            del line["response"]["body"]["usage"]["prompt_tokens_details"]  # what was cached
    return lines


def summary(out: str) -> Any:
    """The job's last line."""
    return json.loads(out.splitlines()[-1])
