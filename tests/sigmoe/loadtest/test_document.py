"""The result: written and read again, compared, and refused where it is none."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sigmoe.errors import Overloaded
from sigmoe.loadtest import charts, compare
from sigmoe.loadtest.display import show
from sigmoe.loadtest.document import Document
from sigmoe.loadtest.expressions import level_expression, request_expression
from sigmoe.loadtest.load import Closed
from tests.sigmoe.loadtest.levels import document
from tests.sigmoe.loadtest.virtual_time import SimulatedServer

LOADS = (Closed(concurrency=2), Closed(concurrency=8))


def made(token_s: float = 0.01) -> Document:
    server = SimulatedServer(token_s=token_s, failures=[Overloaded("full")])
    return document(
        server,
        *LOADS,
        slo=[request_expression("ttft < 1s", "--slo")],
        fail_if=[level_expression("ttft_p99 > 15ms", "--fail-if")],
    )


def printed(draw: object) -> str:
    out = io.StringIO()
    draw(Console(file=out, width=160))  # type: ignore[operator]
    return out.getvalue()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = made()
    written.write(tmp_path / "r.json")
    assert Document.read(tmp_path / "r.json") == written
    raw = json.loads((tmp_path / "r.json").read_text())
    assert raw["schema_version"] == "sigmoe.loadtest/1"
    assert raw["server"]["configuration"] == {"engine": {"max_sequences": 64}}
    assert raw["server"]["version"] == "1" and len(raw["levels"]) == 2


def test_the_server_is_looked_at_meanwhile() -> None:
    level = made().levels[0]
    assert [round(sample.at_s) for sample in level.server] == list(range(len(level.server)))
    assert level.server[0].expert_tokens == ()
    # each look adds 100 * (e + 1) rows on each of two ranks
    assert level.server[1].expert_tokens == (200, 400, 600, 800)
    assert level.server[1].ranks[0].kv_used == pytest.approx(0.6)


def test_ranks_of_several_replicas_are_lines_of_their_own() -> None:
    level = made().levels[0]
    samples = tuple(
        sample.model_copy(
            update={"ranks": tuple(rank.model_copy(update={"replica": rank.rank, "rank": 0}) for rank in sample.ranks)}
        )
        for sample in level.server
    )
    drawn = "".join(charts.server(level.model_copy(update={"server": samples})))
    assert "replica 0, rank 0" in drawn and "replica 1, rank 0" in drawn


def test_failures_outside_the_window_are_told_too() -> None:
    counts = made().levels[0].counts
    assert counts.failed == {} and counts.outside_failed == {"RESOURCE_EXHAUSTED": 1}
    assert counts.met_slo == counts.ok == counts.measured


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "JSON"), ("[]", "JSON"), ("{}", "label"), ('{"schema_version": "sigmoe.loadtest/2"}', "schema_version")],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: is no result of `sigmoe loadtest`") as caught:
        Document.read(tmp_path / "x.json")
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        Document.read(tmp_path / "y.json")


def test_comparing_tells_better_from_worse() -> None:
    slow, fast = made(0.02), made(0.01)
    verdicts = {line.name: line.verdict for line in compare.lines(slow.levels[1], fast.levels[1])}
    assert verdicts["TTFT p50"] == verdicts["TPOT p99"] == "better"
    assert {line.verdict for line in compare.lines(fast.levels[1], slow.levels[1])} == {"worse", ""}
    assert {line.verdict for line in compare.lines(fast.levels[1], fast.levels[1])} == {""}
    hardly = {line.name: line for line in compare.lines(fast.levels[1], made(0.01002).levels[1])}
    assert hardly["TTFT p50"].after > hardly["TTFT p50"].before and not hardly["TTFT p50"].verdict, "20 us more"
    halved = next(line for line in compare.lines(slow.levels[1], fast.levels[1]) if line.name == "TTFT p50")
    assert halved.change == pytest.approx(-0.5)


def test_comparing_names_other_settings(tmp_path: Path) -> None:
    first = made()
    first.write(tmp_path / "r.json")
    raw = json.loads((tmp_path / "r.json").read_text())
    raw["server"]["configuration"]["engine"]["max_sequences"] = 32
    raw["levels"].pop()
    (tmp_path / "s.json").write_text(json.dumps(raw))
    shown = printed(lambda console: compare.show(first, Document.read(tmp_path / "s.json"), console))
    assert "server.configuration.engine.max_sequences: 64 and 32" in shown
    assert "concurrency 8 is only in the first" in shown
    assert list(compare.differences(first, Document.read(tmp_path / "r.json"))) == []


def test_a_difference_of_all_loads_is_told_once(tmp_path: Path) -> None:
    first = made()
    raw = json.loads(first.model_dump_json())
    for level in raw["levels"]:
        level["schedule"]["drain_s"] = 7.0
    (tmp_path / "s.json").write_text(json.dumps(raw))
    told = list(compare.differences(first, Document.read(tmp_path / "s.json")))
    assert told == ["schedule.drain_s: 60.0 and 7.0 (concurrency 2, concurrency 8)"]


def test_a_remark_on_all_loads_is_made_once() -> None:
    shown = printed(lambda console: show(made(0.02), console))
    assert shown.count("p99.9 is the largest of them") == 1
    assert "all loads: fewer than 1,000 answers" in shown


def test_the_table_shows_checks_and_failures() -> None:
    shown = printed(lambda console: show(made(0.02), console))
    assert "--fail-if ttft_p99 > 15ms: true at concurrency 2 (20.0 ms)" in shown
    assert "RESOURCE_EXHAUSTED, for instance: full" in shown
