"""What stands for special tokens in a client's own words: marked before a template renders it, found again after.

Each such place gets a mark after its first character: a character that Unicode never assigns and that the conversation
does not have. Text that becomes a special token only together with the template's own (a role between `<|` and `|>`) is
the template's and stays special. Knows nothing of tokens.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokenizer_svc.chat_template import ChatMessage, Conversation
from tokenwire.errors import InvalidRequest

MARKS = tuple(chr(code) for code in range(0xFDD2, 0xFDF0))
"""Noncharacters, but for the two that `tokenizer.PLAIN_GUARD` is made of."""


def marked(conversation: Conversation, specials: re.Pattern[str]) -> tuple[Conversation, str]:
    """The conversation with its places marked, and the mark; the same and "" where it has none of them.

    Raises InvalidRequest for a conversation that has every mark itself.
    """
    texts: list[str] = []

    def seen(text: str) -> str:
        texts.append(text)
        return text

    _mapped(conversation, seen)
    if not any(specials.search(text) for text in texts):
        return conversation, ""
    whole = "\n".join(texts)
    for mark in MARKS:
        if mark not in whole and _escaped(mark) not in whole.lower():
            break
    else:
        description = "has every noncharacter from U+FDD2 to U+FDEF; not allowed with split_special_tokens"
        raise InvalidRequest.of("conversation", description)

    def mark_in(text: str) -> str:
        return specials.sub(lambda match: match[0][0] + mark + match[0][1:], text)

    return _mapped(conversation, mark_in), mark


def unmarked(text: str, mark: str) -> tuple[str, frozenset[int]]:
    """A rendered text without its marks, and the places that were marked: where what is not special begins."""
    if not mark:
        return text, frozenset()
    pieces = re.split(f"{mark}|{re.escape(_escaped(mark))}", text, flags=re.IGNORECASE)
    places, length = [], 0
    for piece in pieces[:-1]:
        length += len(piece)
        places.append(length - 1)
    return "".join(pieces), frozenset(places)


def _escaped(mark: str) -> str:
    r"""As JSON with `ensure_ascii` has it: "\ufdd2"."""
    return f"\\u{ord(mark):04x}"


def _mapped(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """The conversation with every text of the client changed."""
    return replace(
        conversation,
        messages=tuple(_mapped_message(message, change) for message in conversation.messages),
        tools=tuple(_mapped_value(tool, change) for tool in conversation.tools),
        documents=tuple(_mapped_value(document, change) for document in conversation.documents),
        template_arguments={
            name: _mapped_value(value, change) for name, value in conversation.template_arguments.items()
        },
    )


def _mapped_message(message: ChatMessage, change: Callable[[str], str]) -> ChatMessage:
    return replace(
        message,
        role=change(message.role),
        content=change(message.content),
        name=change(message.name),
        tool_calls=tuple(_mapped_value(call, change) for call in message.tool_calls),
        tool_call_id=change(message.tool_call_id),
        reasoning=change(message.reasoning),
    )


def _mapped_value(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_mapped_value(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _mapped_value(item, change) for key, item in value.items()}
    return value
