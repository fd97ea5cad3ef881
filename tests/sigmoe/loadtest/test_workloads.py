"""Every form of prompts, every mistake in them, lengths, traces, the sets that ship."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from pathlib import Path

import pytest

from sigmoe.loadtest import builtin
from sigmoe.loadtest.jsonl import read_items
from sigmoe.loadtest.lengths import Lengths
from sigmoe.loadtest.trace import Trace, read_trace
from sigmoe.loadtest.workload import DataSet, Item, RandomTokens


def written(folder: Path, *lines: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_each_form(tmp_path: Path) -> None:
    message = {"role": "user", "content": "Hi"}
    path = written(
        tmp_path, {"prompt": "Once", "id": 7}, "", {"prompt": [1, 2]}, {"messages": [message]}, {"turns": ["a", "b"]}
    )
    found = read_items(path)
    assert [item.prompt for item in found] == ["Once", (1, 2), None, None]
    assert found[2].rounds == ((message,),)
    assert [turn[0]["content"] for turn in found[3].rounds] == ["a", "b"]
    assert [item.num_requests for item in found] == [1, 1, 1, 2]


@pytest.mark.parametrize("is_array", [True, False], ids=["array", "lines"])
def test_sharegpt(tmp_path: Path, is_array: bool) -> None:
    entries = [
        {
            "id": "x",
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "human", "value": "c"},
            ],
        },
        {"conversations": []},
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "user", "value": "u"},
                {"from": "gpt", "value": ""},
            ]
        },
    ]
    path = written(tmp_path, *([entries] if is_array else entries))
    found = read_items(path)
    assert [[m["content"] for turn in item.rounds for m in turn] for item in found] == [["a", "c"], ["s", "u"]]
    assert [m["role"] for m in found[1].rounds[0]] == ["system", "user"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("7", "expected an object, got 7"),
        ({"text": "a"}, "expected one of the keys prompt, messages, turns, conversations, found none"),
        ({"prompt": "a", "turns": ["b"]}, "found prompt, turns"),
        ({"prompt": ""}, "prompt: expected a text that is not empty, got ''"),
        ({"prompt": 7}, "prompt: expected a text"),
        ({"prompt": [1, -2]}, "prompt: expected token ids from 0 on"),
        ({"prompt": [True]}, "prompt: expected token ids"),
        ('{"prompt": "\\ud800"}', "half a surrogate pair"),
        ({"turns": []}, "turns: expected a list that is not empty"),
        ({"turns": "a"}, "turns: expected a list"),
        ({"turns": ["a", None]}, "turns: expected a text that is not empty, got None"),
        ({"messages": [{"role": "user"}]}, "messages[0]: expected"),
        ({"messages": [{"role": "doctor", "content": "a"}]}, "role: 'doctor' is not one of system, user"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "conversations[0]: from: 'alien' is not one of"),
        ({"conversations": [{"value": "a"}]}, "conversations[0]: expected"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, line: object, message: str) -> None:
    path = written(tmp_path, {"prompt": "fine"}, line)
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 2: ") as caught:
        read_items(path)
    assert message in str(caught.value) and len(str(caught.value)) < 400


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no prompts"):
        read_items(written(tmp_path, ""))
    with pytest.raises(ValueError, match="cannot be read"):
        read_items(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no UTF-8 at byte 0"):
        read_items(tmp_path / "bytes")


def test_the_sets_that_ship() -> None:
    sizes = {name: len(builtin.items(name)) for name in builtin.SETS}
    assert sizes == {"medical": 128, "medical-diseases": 126, "humaneval": 164}
    assert "has_close_elements" in str(builtin.items("humaneval")[0].prompt)
    folder = Path(builtin.__file__).parent / "data"
    assert "Copyright (c) OpenAI" in (folder / "humaneval.LICENSE").read_text()
    assert "CC BY 4.0" in (folder / "README.md").read_text()
    fields = {key for line in (folder / "humaneval.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert fields == {"task_id", "prompt"}, "solutions and tests are not ours to spread to models"


def test_sets_are_asked_whole_before_they_are_repeated() -> None:
    given = [Item(prompt=str(i)) for i in range(20)]
    found = list(itertools.islice(DataSet(name="x", given=given).items("1"), 60))
    rounds = [[item.prompt for item in found[i : i + 20]] for i in (0, 20, 40)]
    assert all(sorted(map(int, map(str, one))) == list(range(20)) for one in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    assert found == list(itertools.islice(DataSet(name="x", given=given).items("1"), 60))
    in_order = DataSet(name="x", given=given, is_shuffled=False)
    assert list(itertools.islice(in_order.items("1"), 20)) == given


def test_shapes() -> None:
    item = Item(rounds=(({"role": "user", "content": "a"},), ({"role": "user", "content": "b"},)))
    assert item.shaped(is_chat=False, is_single=True).rounds == item.rounds[:1]
    assert Item(prompt="p").shaped(is_chat=True, is_single=False).rounds[0][0]["content"] == "p"
    assert Item(prompt=(1,)).shaped(is_chat=True, is_single=False).prompt == (1,)


def test_random_prompts_have_the_lengths_and_avoid_the_ends() -> None:
    made = RandomTokens(
        vocab_size=50,
        input_tokens=Lengths.parse("uniform:5,9", "--input-tokens"),
        output_tokens=Lengths.parse("12", "--output-tokens"),
        avoided=frozenset({0, 3}),
    )
    found = list(itertools.islice(made.items("1/0"), 400))
    assert {len(item.prompt or ()) for item in found} == {5, 6, 7, 8, 9}
    ids = {token for item in found for token in item.prompt or ()}
    assert ids == set(range(50)) - {0, 3}
    assert {item.output_tokens for item in found} == {12}
    assert len({item.prompt for item in found}) == 400


def test_shared_prefixes_are_shared_in_all_levels() -> None:
    made = RandomTokens(
        vocab_size=1000,
        input_tokens=Lengths.parse("4", "x"),
        output_tokens=Lengths.parse("1", "x"),
        num_prefixes=3,
        prefix_tokens=20,
    )
    prefixes = {
        item.prompt[:20] for seed in ("1/0", "1/1") for item in itertools.islice(made.items(seed), 50) if item.prompt
    }
    assert len(prefixes) == 3
    tails = [item.prompt[20:] for item in itertools.islice(made.items("1/0"), 50) if item.prompt]
    assert len(set(tails)) == 50 and {len(tail) for tail in tails} == {4}


@pytest.mark.parametrize(
    ("text", "mean", "rel"),
    [
        ("128", 128, 0),
        ("uniform:10,20", 15, 0.01),
        ("normal:200,20", 200, 0.01),
        ("exponential:300", 300, 0.05),
        ("lognormal:100,0.5", 113.3, 0.05),  # exp(sigma^2 / 2) times the median
        ("normal:200,20,190,210", 200, 0.01),
    ],
)
def test_lengths_have_their_means(text: str, mean: float, rel: float) -> None:
    lengths, rng = Lengths.parse(text, "--x"), random.Random(2)
    drawn = [lengths.draw(rng) for _ in range(5000)]
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=rel)
    assert min(drawn) >= 1
    if text.count(",") == 3:
        assert min(drawn) == 190 and max(drawn) == 210


@pytest.mark.parametrize(
    "text",
    ["", "0", "-3", "x", "fixed:3", "uniform:5", "uniform:9,5", "normal:5", "normal:5,1,9", "normal:5,1,9,3", "nan",
     "normal:inf,1", "normal:5,-1", "uniform:0,5", "zipf:3,4"],
)  # fmt: skip
def test_wrong_lengths_name_the_flag(text: str) -> None:
    with pytest.raises(ValueError, match=r"--input-tokens: "):
        Lengths.parse(text, "--input-tokens")


def test_a_trace_is_replayed_from_its_first_arrival(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"timestamp": 105.0, "input_tokens": 6, "output_tokens": 9},
        {"timestamp": 101, "prompt": "first"},
        {"timestamp": 103.0},
    )
    trace = Trace(
        path="t",
        speed=2.0,
        arrivals=read_trace(path, 2.0),
        vocab_size=50,
        other=DataSet(name="x", given=[Item(prompt="filled")]),
    )
    assert list(trace.times()) == [0.0, 1.0, 2.0]
    found = list(trace.items("1"))
    assert [item.prompt for item in found[:2]] == ["first", "filled"]
    assert len(found[2].prompt or ()) == 6 and found[2].output_tokens == 9
    assert trace.facts()["asks"]["name"] == "x"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a"}, "timestamp: expected seconds as a number, got None"),
        ({"timestamp": "1"}, "timestamp: expected seconds"),
        ({"timestamp": True}, "timestamp: expected seconds"),
        ('{"timestamp": NaN}', "timestamp: expected seconds"),
        ({"timestamp": 1, "input_tokens": 0}, "input_tokens: expected a whole number from 1"),
        ({"timestamp": 1, "output_tokens": 1.5}, "output_tokens: expected a whole number"),
        ({"timestamp": 1, "prompt": ""}, "prompt: expected a text"),
    ],
)
def test_mistakes_in_traces_name_file_and_line(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(ValueError, match=r"prompts\.jsonl, line 2: ") as caught:
        read_trace(written(tmp_path, {"timestamp": 0}, line))
    assert message in str(caught.value)
