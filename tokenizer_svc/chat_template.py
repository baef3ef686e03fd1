"""A conversation to the prompt a model was trained on: its chat template, rendered in a sandbox.

Renders exactly what `apply_chat_template` of `transformers` renders, with the variables and filters that templates on
the hub expect ("Writing a chat template" in the transformers documentation); that library is not needed. One thing
more: tools, which that ignores where a template reads none, are then written into the messages (`tool_prompt`). Calls
block: `tokenizer_svc.encoder` keeps long ones off the event loop. Knows nothing of token ids.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta

from tokenizer_svc.json_size import text_size
from tokenizer_svc.template_budget import WORK_PER_OUTPUT, Budget, TooMuch
from tokenizer_svc.template_filters import BUDGET
from tokenizer_svc.template_sandbox import BoundedEnvironment
from tokenizer_svc.tokenizer import read_json
from tokenizer_svc.tool_prompt import with_tools_written_out
from tokenwire.errors import FailedPrecondition, InvalidRequest
from tokenwire.fingerprint import template_fingerprint

CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
"""Marks the end of the message to continue; the blank shows whether the template trims. As transformers does it."""
RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
"""Variables that have their own fields in a conversation."""
MAX_RENDER_S = 2.0
MAX_OUTPUT_CHARS = 8 * 2**20
UNSUITED = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError)
"""What Python raises where a conversation does not suit a template."""
MAX_SAID_CHARS = 4_096
"""Of what an error of a template says."""
WEIGHED_CHARS = 100_000
"""Up to here tools, documents and arguments are measured; more is much, in any case."""


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
    required_tool: str = ""
    """The answer is a call of this tool; "*": of any. Empty: the model decides. Not for templates."""

    @property
    def has_calls(self) -> bool:
        """Whether a message makes tool calls or answers one."""
        return any(message.tool_calls or message.role == "tool" for message in self.messages)

    def num_chars(self) -> int:
        """About how much there is to render."""
        calls = [message.tool_calls for message in self.messages if message.tool_calls]
        rest = [part for part in (self.tools, self.documents, self.template_arguments, calls) if part]
        return (
            sum(len(message.content) + len(message.reasoning) for message in self.messages)
            + (text_size(rest, WEIGHED_CHARS) if rest else 0)
            + 500 * (len(self.messages) + len(self.tools) + len(self.documents))
        )


class ChatTemplate:
    """A model's template, compiled once. Thread-safe: rendering changes nothing here."""

    def __init__(
        self,
        source: str,
        *,
        special_tokens: dict[str, str],
        tool_source: str | None = None,
        max_output_chars: int = MAX_OUTPUT_CHARS,
        max_render_s: float = MAX_RENDER_S,
    ) -> None:
        """`tool_source`: the template for conversations with tools, where a model has its own.

        Raises FailedPrecondition when one does not compile.
        """
        self.fingerprint = template_fingerprint(source)
        self._special_tokens = special_tokens
        self._max_output_chars = max_output_chars
        self._max_render_s = max_render_s
        self._template = _compiled(source)
        self.source = source
        self.tool_source = tool_source or source
        self._tool_template = _compiled(tool_source) if tool_source else self._template
        self.reads_tools = "tools" in meta.find_undeclared_variables(BoundedEnvironment().parse(self.tool_source))
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
        """Render piece by piece, within a budget, so that neither size nor time can run away."""
        parts: list[str] = []
        size = 0
        budget = Budget(seconds=self._max_render_s, num_chars=self._max_output_chars * WORK_PER_OUTPUT)
        try:
            for part in template.root_render_func(template.new_context({**variables, BUDGET: budget})):
                budget.tick()
                parts.append(part)
                size += len(part)
                if size > self._max_output_chars:
                    raise _invalid(
                        "messages", f"the rendered prompt is longer than {self._max_output_chars} characters"
                    )
        except InvalidRequest:
            raise
        except TooMuch as error:
            raise _invalid("messages", str(error)) from None
        except jinja2.TemplateError as error:
            raise _invalid(
                "messages", f"the model's chat template refuses it: {_said(error.message or error)}"
            ) from None
        except (
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
            MemoryError,
            NameError,  # Jinja writes numbers that are not finite into its code by name
        ) as error:
            raise _invalid(
                "messages", f"the model's chat template cannot render it ({type(error).__name__}: {_said(error)})"
            ) from None
        return "".join(parts)


def load_chat_template(
    folder: Path,
    special_tokens: dict[str, str],
    *,
    max_output_chars: int = MAX_OUTPUT_CHARS,
    max_render_s: float = MAX_RENDER_S,
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
        max_render_s=max_render_s,
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
        template = BoundedEnvironment().from_string(source)
    except (jinja2.TemplateError, SyntaxError, *UNSUITED) as error:  # Jinja makes Python of it, and of some none
        raise FailedPrecondition(
            f"the model's chat template does not compile: {error}", reason="MODEL_DAMAGED"
        ) from None
    template.globals = dict(template.globals)  # Jinja's own view of them is walked through twice a rendering
    return template


def _said(error: Any) -> str:
    """What an error says, as much as can be read."""
    return str(error)[:MAX_SAID_CHARS]


def _cut_at_tag(text: str, final: ChatMessage) -> str:
    """The prompt up to where the final message's content ends; blanks that the template trimmed stay trimmed."""
    tag = CONTINUE_TAG.strip()
    if tag not in text or final.content.strip() not in text:
        raise _invalid("continue_final_message", "the chat template does not render the final message as it is")
    place = text.rindex(tag)
    return text[:place] if text.startswith(CONTINUE_TAG, place) else text[:place].rstrip()


def _invalid(field_name: str, description: str) -> InvalidRequest:
    return InvalidRequest.of(f"conversation.{field_name}", description)
