"""A conversation to the prompt a model was trained on: its chat template, rendered in a sandbox.

Renders exactly what `apply_chat_template` of `transformers` renders, with the variables and filters that templates on
the hub expect ("Writing a chat template" in the transformers documentation); that library is not needed. One thing
more: tools, which that ignores where a template reads none, are then written into the messages (`tool_prompt`). Calls
block: `tokenizer_svc.encoder` keeps long ones off the event loop. Knows nothing of token ids.
"""

import json
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tokenizer_svc.tokenizer import read_json
from tokenizer_svc.tool_prompt import with_tools_written_out
from tokenwire.errors import FailedPrecondition, FieldViolation, InvalidRequest
from tokenwire.fingerprint import template_fingerprint

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the message to continue; the blank shows whether the template trims. As transformers does it."""
RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
"""Variables that have their own fields in a conversation."""
MAX_RENDER_S = 5.0
"""Checked whenever the template writes something; the sandbox's range limit bounds a loop that writes nothing."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message; empty fields are not shown to the template."""

    role: str
    content: str = ""
    name: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """As templates expect: {"id": ..., "type": "function", "function": {"name": ..., "arguments": {...}}}."""
    tool_call_id: str = ""
    reasoning: str = ""

    def variables(self) -> dict[str, Any]:
        """The message as a template sees it; `content` is there even when empty."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name:
            found["name"] = self.name
        if self.tool_calls:
            found["tool_calls"] = list(self.tool_calls)
        if self.tool_call_id:
            found["tool_call_id"] = self.tool_call_id
        if self.reasoning:
            found["reasoning_content"] = found["thinking"] = self.reasoning
        return found


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template renders. JSON-like values only."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[dict[str, Any], ...] = ()
    documents: tuple[dict[str, Any], ...] = ()
    template_arguments: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    """None: true, unless the last message is continued."""
    continue_final_message: bool = False
    parallel_tool_calls: bool = True
    """Whether one answer may hold several calls. Not for templates."""

    @property
    def has_calls(self) -> bool:
        """Whether a message makes tool calls or answers one."""
        return any(message.tool_calls or message.role == "tool" for message in self.messages)

    def num_chars(self) -> int:
        """About how much there is to render. Schemas and arguments are not looked into: each counts as a long text."""
        num_texts = len(self.tools) + len(self.documents) + sum(len(m.tool_calls) for m in self.messages)
        num_chars = sum(len(m.content) + len(m.reasoning) + 500 for m in self.messages)
        return num_chars + 2_000 * num_texts


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what training counts; for a prompt it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _PlainNamespace(Namespace):
    """`namespace()` that refuses names beginning with an underscore: those reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N805  (`self` may be a template's own name)
        self, *values = args
        attributes = dict(*values, **kwargs)
        for name in attributes:
            _PlainNamespace._check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _PlainNamespace._check(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: str) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace attribute may not begin with an underscore: {name!r}")


class _Dict:
    """`dict(...)` for templates, without the type's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as the model saw it in training: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _PlainNamespace
    environment.globals["dict"] = _Dict()
    return environment


class ChatTemplate:
    """A model's template, compiled once. Thread-safe: rendering changes nothing here."""

    def __init__(
        self, source: str, *, special_tokens: dict[str, str], tool_source: str | None = None, max_output_chars: int
    ) -> None:
        """`tool_source`: the template for conversations with tools, where a model has its own.

        Raises FailedPrecondition when one does not compile.
        """
        self.fingerprint = template_fingerprint(source)
        self._special_tokens = special_tokens
        self._max_output_chars = max_output_chars
        self._template = _compiled(source)
        self.source = source
        self.tool_source = tool_source or source
        self._tool_template = _compiled(tool_source) if tool_source else self._template
        self.reads_tools = "tools" in meta.find_undeclared_variables(_environment().parse(self.tool_source))
        """Whether the template shows tools to the model; where not, they are written into the messages."""

    def render(self, conversation: Conversation) -> str:
        """The prompt. Raises InvalidRequest naming the field when the conversation does not suit the template."""
        if not conversation.messages:
            raise _invalid("messages", "at least one message is needed")
        for name in RESERVED:
            if name in conversation.template_arguments:
                raise _invalid(f"template_arguments.{name}", "has a field of its own; set that")
        messages = [message.variables() for message in conversation.messages]
        unread_calls = conversation.has_calls and "tool_calls" not in self.source
        if not self.reads_tools and (conversation.tools or unread_calls):
            messages = with_tools_written_out(messages, conversation.tools)
        source = self.tool_source if conversation.tools else self.source
        if conversation.continue_final_message:
            self._mark_final(messages, conversation, source)
        generation_prompt = conversation.add_generation_prompt
        if generation_prompt is None:
            generation_prompt = not conversation.continue_final_message
        variables: dict[str, Any] = {
            **self._special_tokens,
            **conversation.template_arguments,
            "messages": messages,
            "tools": list(conversation.tools) or None,
            "documents": list(conversation.documents) or None,
            "add_generation_prompt": generation_prompt,
        }
        text = self._run(self._tool_template if conversation.tools else self._template, variables)
        return _cut_at_tag(text, conversation.messages[-1]) if conversation.continue_final_message else text

    def _mark_final(self, messages: list[dict[str, Any]], conversation: Conversation, source: str) -> None:
        if conversation.add_generation_prompt:
            raise _invalid("add_generation_prompt", "true is not allowed together with continue_final_message")
        if not messages[-1]["content"]:
            raise _invalid("continue_final_message", "the final message has no content to continue")
        if "content" not in source:
            raise _invalid("continue_final_message", "this model's chat template does not read a message's content")
        messages[-1]["content"] += CONTINUE_TAG

    def _run(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        """Render piece by piece, so that neither size nor time can run away."""
        parts: list[str] = []
        size, end_s = 0, time.monotonic() + MAX_RENDER_S
        try:
            for part in template.root_render_func(template.new_context(variables)):
                parts.append(part)
                size += len(part)
                if size > self._max_output_chars:
                    raise _invalid(
                        "messages", f"the rendered prompt is longer than {self._max_output_chars} characters"
                    )
                if time.monotonic() > end_s:
                    raise _invalid("messages", f"the chat template took longer than {MAX_RENDER_S:g} s")
        except InvalidRequest:
            raise
        except jinja2.TemplateError as error:
            raise _invalid("messages", f"the model's chat template refuses it: {error.message or error}") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            raise _invalid(
                "messages", f"the model's chat template cannot render it ({type(error).__name__}: {error})"
            ) from None
        return "".join(parts)


def load_chat_template(
    folder: Path, special_tokens: dict[str, str], *, max_output_chars: int = 8 * 2**20
) -> ChatTemplate | None:
    """A model folder's template, or None where it has none; raises FailedPrecondition when it does not compile.

    From chat_template.jinja (and additional_chat_templates/tool_use.jinja), else tokenizer_config.json, where it is a
    text or a list of {"name", "template"}.
    """
    named: dict[str, str] = {}
    found = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, str):
        named["default"] = found
    elif isinstance(found, list):
        named = {entry["name"]: entry["template"] for entry in found}
    for name, path in (
        ("default", folder / "chat_template.jinja"),
        ("tool_use", folder / "additional_chat_templates" / "tool_use.jinja"),
    ):
        if path.is_file():
            named[name] = path.read_text(encoding="utf-8")
    if "default" not in named:
        return None
    return ChatTemplate(
        named["default"],
        special_tokens=special_tokens,
        tool_source=named.get("tool_use"),
        max_output_chars=max_output_chars,
    )


def no_template(model: str) -> FailedPrecondition:
    """What a conversation is answered with when the model has no template."""
    return FailedPrecondition(
        f"model {model!r} has no chat template: send text instead of a conversation, or put a chat_template.jinja "
        "into its folder",
        reason="NO_CHAT_TEMPLATE",
    )


def _compiled(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except jinja2.TemplateError as error:
        raise FailedPrecondition(
            f"the model's chat template does not compile: {error}", reason="MODEL_DAMAGED"
        ) from None


def _cut_at_tag(text: str, final: ChatMessage) -> str:
    """The prompt up to where the final message's content ends; blanks that the template trimmed stay trimmed."""
    tag = CONTINUE_TAG.strip()
    if tag not in text or final.content.strip() not in text:
        raise _invalid("continue_final_message", "the chat template does not render the final message as it is")
    place = text.rindex(tag)
    return text[:place] if text.startswith(CONTINUE_TAG, place) else text[:place].rstrip()


def _invalid(field_name: str, description: str) -> InvalidRequest:
    violation = FieldViolation(f"conversation.{field_name}", description)
    return InvalidRequest(f"{violation.field}: {description}", violations=[violation])
