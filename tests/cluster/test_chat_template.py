from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.chat_template import LING_TEMPLATE, ChatTemplate
from model.errors import CheckpointError
from sigmoe.errors import InvalidRequest, SigmoeError

LING = ChatTemplate(LING_TEMPLATE)
OPENING = "<role>SYSTEM</role>detailed thinking off<|role_end|>"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def config(folder: Path, **fields: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        (
            [turn("user", "Hi")],
            "<role>SYSTEM</role>detailed thinking off<|role_end|>"
            "<role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>",
        ),
        (
            [turn("system", "Be kind"), turn("user", "Hi")],
            "<role>SYSTEM</role>Be kind\ndetailed thinking off<|role_end|><role>HUMAN</role>Hi<|role_end|>"
            "<role>ASSISTANT</role>",
        ),
        (
            [turn("user", "a"), turn("assistant", "b"), turn("system", "c"), turn("user", "d")],
            OPENING + "<role>HUMAN</role>a<|role_end|><role>ASSISTANT</role>b<|role_end|>"
            "<role>SYSTEM</role>c<|role_end|><role>HUMAN</role>d<|role_end|><role>ASSISTANT</role>",
        ),
        (
            [turn("user", "a"), turn("assistant", "<think>\nhm\n</think>\n\nb"), turn("user", "c")],
            OPENING + "<role>HUMAN</role>a<|role_end|><role>ASSISTANT</role>b<|role_end|>"
            "<role>HUMAN</role>c<|role_end|><role>ASSISTANT</role>",
        ),
        (
            [turn("user", "a"), turn("assistant", "<think>\nhm\n</think>\n\nb"), turn("tool", "1"), turn("tool", "2")],
            OPENING + "<role>HUMAN</role>a<|role_end|><role>ASSISTANT</role>\n<think>\nhm\n</think>\n\nb<|role_end|>"
            "<role>OBSERVATION</role>\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>"
            "<|role_end|><role>ASSISTANT</role>",
        ),
    ],
)
def test_ling_s_format_to_the_character(messages: list[dict[str, str]], prompt: str) -> None:
    assert LING.render(messages) == prompt


@given(st.lists(st.builds(turn, st.sampled_from(["system", "user", "assistant", "tool"]), st.text()), min_size=1))
def test_any_content_renders_as_it_is(messages: list[dict[str, str]]) -> None:
    prompt = LING.render(messages)
    for message in messages:
        if message["role"] != "assistant":
            assert message["content"] in prompt


def test_content_is_data_not_template() -> None:
    assert "{{ 7 * 7 }}{% raw %}" in LING.render([turn("user", "{{ 7 * 7 }}{% raw %}")])


def test_without_a_template_it_is_ling_s(tmp_path: Path) -> None:
    assert ChatTemplate.from_dir(tmp_path).render([turn("user", "Hi")]) == LING.render([turn("user", "Hi")])


def test_the_checkpoint_s_own_template_and_tokens(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}|{{ m['content'] }}]{% endfor %}{{ eos_token }}"
    config(tmp_path, chat_template=template, bos_token="<s>", eos_token={"content": "</s>"})
    rendered = ChatTemplate.from_dir(tmp_path).render([turn("user", "a"), turn("assistant", "b")])
    assert rendered == "<s>[user|a][assistant|b]</s>"


def test_of_a_list_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    assert ChatTemplate.from_dir(config(tmp_path, chat_template=named)).render([turn("user", "a")]) == "yes"


def test_a_file_of_its_own_comes_first(tmp_path: Path) -> None:
    config(tmp_path, chat_template="config")
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTemplate.from_dir(tmp_path).render([turn("user", "a")]) == "file"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if %}", r"tokenizer_config\.json: chat template, line 1: "),
        ([{"name": "tools", "template": ""}], "neither a text nor a list with one named 'default'"),
        (7, "neither a text nor a list"),
    ],
)
def test_a_broken_template_stops_the_start(tmp_path: Path, template: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ChatTemplate.from_dir(config(tmp_path, chat_template=template))


def test_features_that_templates_of_this_kind_use() -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}\n"
        "    {%- if not tools is none %}no{% endif %}"
    )
    assert ChatTemplate(source).render([turn("user", "<ü>")] * 2) == '{"role": "user", "content": "<ü>"}'


def test_a_template_may_refuse_a_conversation() -> None:
    with pytest.raises(InvalidRequest, match=r"messages: the chat template does not take.*roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render([turn("user", "a")])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in range(1000) %}{{ 'x' * 100000 }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[5].content }}",
        "{{ lipsum(1000000) }}",
        "{% include 'other' %}",
        "{% import os %}",
    ],
)
def test_a_hostile_template_gets_nowhere(source: str) -> None:
    try:
        template = ChatTemplate(source)
    except jinja2.TemplateSyntaxError:
        return
    with pytest.raises(SigmoeError):
        template.render([turn("user", "a")])
