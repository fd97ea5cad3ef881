"""Our BPE, and the chat frame in its three forms: training's rendering, the shipped template, the exact string."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import training
from training.chat import SPECIAL_TOKENS, Document, Turn, prompt, render
from training.tokenizer import load_tokenizer

TEMPLATE = (Path(training.__file__).parent / "chat_template.jinja").read_text()
SHIPPED = Path(training.__file__).parents[1] / "models" / "sigmoe-demo"


def rendered(messages: list[dict[str, Any]], **more: Any) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    return environment.from_string(TEMPLATE).render(messages=messages, **more)


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_survives_the_shipped_tokenizer(text: str) -> None:
    tokenizer = load_tokenizer(SHIPPED)
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_come_last_and_stay_whole(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS] == list(range(size - len(SPECIAL_TOKENS), size))
    for token in SPECIAL_TOKENS:
        assert tokenizer.encode(f"a{token}b").tokens[1] == token


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2024").tokens == ["2", "0", "2", "4"]


def test_prompt_is_lings_exact_string() -> None:
    expected = (
        "<role>SYSTEM</role>detailed thinking off<|role_end|><role>HUMAN</role>Hi<|role_end|><role>ASSISTANT</role>"
    )
    assert prompt("Hi") == expected
    assert rendered([{"role": "user", "content": "Hi"}], add_generation_prompt=True) == expected


def test_template_renders_what_training_saw() -> None:
    document = Document("x", (Turn("What is it?", "A cold."), Turn("And then?", "Rest.")), "Answer briefly.")
    messages = [{"role": "system", "content": document.system}]
    for turn in document.turns:
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    assert rendered(messages) == "".join(text for text, _ in render(document.system, document.turns))


def test_later_system_message_is_a_block_of_its_own() -> None:
    text = rendered([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}])
    assert text.endswith("<role>HUMAN</role>a<|role_end|><role>SYSTEM</role>b<|role_end|>")


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_reasoning_is_dropped_before_the_last_question_and_kept_after_it(field: str) -> None:
    said: dict[str, Any] = {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nyes"}
    if field == "reasoning_content":
        said |= {"content": "yes", "reasoning_content": "why"}
    question = {"role": "user", "content": "q"}
    assert rendered([question, said]).endswith("<role>ASSISTANT</role>\n<think>\nwhy\n</think>\n\nyes<|role_end|>")
    assert "<role>ASSISTANT</role>yes<|role_end|>" in rendered([question, said, question])


def test_tools_calls_and_observations() -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    call = {"function": {"name": "look_up", "arguments": {"term": "flu"}}}
    text = rendered(
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [call, call]},
            {"role": "tool", "content": "one"},
            {"role": "tool", "content": "two"},
        ],
        tools=[tool],
        add_generation_prompt=True,
    )
    head, rest = text.split("<role>HUMAN</role>q<|role_end|>")
    assert head.startswith("<role>SYSTEM</role># Tools\n\n") and head.endswith("\ndetailed thinking off<|role_end|>")
    assert f"<tools>\n{json.dumps(tool)}\n</tools>" in head
    one_call = '<tool_call>\n{"name": "look_up", "arguments": {"term": "flu"}}\n</tool_call>'
    assert rest == (
        f"<role>ASSISTANT</role>{one_call}\n{one_call}<|role_end|><role>OBSERVATION</role>\n<tool_response>\none\n"
        "</tool_response>\n<tool_response>\ntwo\n</tool_response><|role_end|><role>ASSISTANT</role>"
    )
