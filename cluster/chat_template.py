"""Conversations to prompts, by the checkpoint's own chat template or by this family's usual one.

A template is a program that came with the weights: it runs in jinja's sandbox, without access to Python objects,
with bounds on loops, on repetition and on its output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model.errors import CheckpointError
from model.strict_json import read_object
from sigmoe.errors import InvalidRequest, ServerFailure, Violation

ROLES = ("system", "user", "assistant", "tool")
_MAX_CHARACTERS = 16 * 2**20  # of a rendered prompt: more than any context holds
_MAX_ROUNDS = 1_000_000  # of all range() loops of one rendering

# Source: model-spec §7. `detailed thinking off` always ends the system block; reasoning of earlier answers is
# dropped, that of answers after the last question is kept.
LING_TEMPLATE = """\
{%- set system = messages[0].content + '\\n' if messages[0].role == 'system' else '' -%}
{{- '<role>SYSTEM</role>' + system + 'detailed thinking off<|role_end|>' -}}
{%- set last = namespace(question=-1) -%}
{%- for message in messages if message.role == 'user' -%}
  {%- set last.question = last.question + 1 -%}
{%- endfor -%}
{%- set seen = namespace(questions=-1) -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {%- set seen.questions = seen.questions + 1 -%}
    {{- '<role>HUMAN</role>' + message.content + '<|role_end|>' -}}
  {%- elif message.role == 'system' and not loop.first -%}
    {{- '<role>SYSTEM</role>' + message.content + '<|role_end|>' -}}
  {%- elif message.role == 'assistant' -%}
    {%- set parts = message.content.split('</think>') -%}
    {%- set answer = parts[-1].lstrip('\\n') if parts | length > 1 else message.content -%}
    {%- set thought = parts[0].split('<think>')[-1].strip('\\n') if parts | length > 1 else '' -%}
    {{- '<role>ASSISTANT</role>' -}}
    {%- if thought and seen.questions == last.question -%}
      {{- '\\n<think>\\n' + thought + '\\n</think>\\n\\n' -}}
    {%- endif -%}
    {{- answer + '<|role_end|>' -}}
  {%- elif message.role == 'tool' -%}
    {%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<role>OBSERVATION</role>' -}}{%- endif -%}
    {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' -}}
    {%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|role_end|>' -}}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<role>ASSISTANT</role>' -}}{%- endif -%}
"""


class TemplateRefusal(Exception):
    """The template itself called raise_exception: it does not take this conversation."""


class ChatTemplate:
    """A compiled template with the special tokens that it may name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """Raises jinja2.TemplateSyntaxError."""
        self._template = _Sandbox().from_string(source)
        self._special_tokens = dict(special_tokens or {})

    @classmethod
    def from_dir(cls, model_dir: Path) -> ChatTemplate:
        """The template of chat_template.jinja or tokenizer_config.json, else Ling's. Raises CheckpointError."""
        file, own_file = model_dir / "tokenizer_config.json", model_dir / "chat_template.jinja"
        fields = read_object(file) if file.exists() else {}
        source = _default_of(fields.get("chat_template"), file)
        if own_file.exists():
            file, source = own_file, _read(own_file)
        try:
            return cls(LING_TEMPLATE if source is None else source, _special_tokens(fields))
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"{file}: chat template, line {error.lineno}: {error.message}") from None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for the assistant's next answer. Raises InvalidRequest where the template refuses."""
        try:
            pieces = self._template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                range=_bounded_range(),
                raise_exception=_refuse,
                **self._special_tokens,
            )
            return _join(pieces)
        except (jinja2.TemplateError, TemplateRefusal) as error:
            message = f"the chat template does not take this conversation: {error}"
            raise InvalidRequest("invalid request", [Violation("messages", message)]) from None
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
            raise ServerFailure(f"the chat template fails: {type(error).__name__}: {error}") from error


class _Generation(Extension):
    """{% generation %} marks what a model is trained on; here its body alone matters."""

    tags = {"generation"}  # noqa: RUF012 - the library's own annotation

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The body of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja's sandbox; repetition is bounded too."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.filters["tojson"] = _to_json
        del self.globals["lipsum"]  # writes any amount of text

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse products that would fill the memory."""
        if operator == "**":
            raise jinja2.exceptions.SecurityError("the operator ** is not offered here")
        sizes = [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
        if sizes[0] * sizes[1] > _MAX_CHARACTERS and any(hasattr(side, "__len__") for side in (left, right)):
            raise jinja2.exceptions.SecurityError("a repetition is too long")
        return super().call_binop(context, operator, left, right)


def _join(pieces: Iterator[str]) -> str:
    kept, num_characters = [], 0
    for piece in pieces:
        num_characters += len(piece)
        if num_characters > _MAX_CHARACTERS:
            raise TemplateRefusal(f"the rendered prompt is longer than {_MAX_CHARACTERS} characters")
        kept.append(piece)
    return "".join(kept)


def _bounded_range() -> Callable[..., Iterator[int]]:
    """A range() whose rounds are counted over the whole rendering, so that nested loops end."""
    num_rounds = 0

    def bounded(*bounds: int) -> Iterator[int]:
        nonlocal num_rounds
        for number in range(*bounds):
            num_rounds += 1
            if num_rounds > _MAX_ROUNDS:
                raise TemplateRefusal("its loops do not end")
            yield number

    return bounded


def _refuse(message: str) -> NoReturn:
    raise TemplateRefusal(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    """As templates of this kind expect it: no HTML escapes, which jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _default_of(template: Any, file: Path) -> str | None:
    """One template, or the one called `default` of a list of named ones."""
    if template is None or isinstance(template, str):
        return template
    try:
        named = {entry["name"]: entry["template"] for entry in template}
        return str(named["default"])
    except (TypeError, KeyError):
        raise CheckpointError(f"{file}: chat_template: neither a text nor a list with one named 'default'") from None


def _special_tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = fields.get(name)
        tokens[name] = str(token.get("content", "") if isinstance(token, dict) else token or "")
    return tokens


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable: {error}") from None
