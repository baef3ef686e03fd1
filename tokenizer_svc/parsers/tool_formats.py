"""How model families write tool calls as JSON: Hermes and Qwen, Llama 3, Mistral; and what a format is in general.

Sources: the chat templates of NousResearch/Hermes-2-Pro, Qwen2.5 and Qwen3, Llama 3.1 and 3.2, Mistral v3 to v13
(mistral-common). Python-like calls are read by `pythonic`.
"""

import re
from typing import Protocol

from tokenizer_svc.parsers.json_calls import (
    MAX_NAME_CHARS,
    CallRules,
    another_call,
    read_call,
    read_call_list,
    stream_arguments,
)
from tokenizer_svc.parsers.parts import Kind, Parts
from tokenizer_svc.parsers.reader import Malformed, Reader, Steps

_NO_NAME = re.compile(r"[^\w.\-]")
_NO_ID = re.compile(r"[^A-Za-z0-9]")
MAX_ID_CHARS = 64


class ToolFormat(Protocol):
    """One family's way of writing calls. Without state: one serves all requests."""

    @property
    def openers(self) -> tuple[str, ...]:
        """Markers that begin a block of calls anywhere in the text."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Further markers, which may be special tokens."""

    @property
    def bare(self) -> str:
        """Characters that begin a block where nothing but whitespace came before."""

    @property
    def closing(self) -> str:
        """What a call ends with."""

    @property
    def id_chars(self) -> int:
        """Length of a call's id, where templates of this family insist on one; 0: OpenAI's form."""

    def read(self, reader: Reader, parts: Parts, names: frozenset[str]) -> Steps[None]:
        """Read a block whose opener, if it had one, was just read. `names`: the functions of the request.

        Raises Malformed as long as nothing was given out. Afterwards it leaves what is no call.
        """


class Hermes:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`; a list of such objects inside is read as well."""

    openers = ("<tool_call>",)
    markers = ("</tool_call>",)
    bare = ""
    closing = "</tool_call>"
    id_chars = 0

    def read(self, reader: Reader, parts: Parts, names: frozenset[str]) -> Steps[None]:
        """See `ToolFormat.read`. The marker says that it is a call: any name will do."""
        rules = CallRules(closing=self.closing)
        if (yield from reader.skip_space()) == "[":
            yield from read_call_list(reader, parts, rules)
        else:
            yield from read_call(reader, parts, rules)
        while not parts.full:
            yield from reader.skip_space()
            if (yield from reader.accept(self.closing)) or reader.accept_cut(self.closing):
                parts.add(Kind.MARKUP, reader.take())
                return
            reader.rewind()
            if not (yield from another_call(reader, parts, rules)):
                return


class Llama3:
    """`{"name": …, "parameters": {…}}` as the whole answer, several separated by `;`, perhaps behind `<|python_tag|>`.

    Nothing marks the object as a call, so its name must be one of the request's functions.
    """

    openers = ("<|python_tag|>",)
    markers = ()
    bare = "{"
    closing = "}"
    id_chars = 0

    def read(self, reader: Reader, parts: Parts, names: frozenset[str]) -> Steps[None]:
        """See `ToolFormat.read`."""
        rules = CallRules(names)
        yield from reader.skip_space()
        yield from read_call(reader, parts, rules)
        while not parts.full and (yield from another_call(reader, parts, rules, ";")):
            pass


class Mistral:
    """`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, and the newer `[TOOL_CALLS]name[ARGS]{…}` for each call."""

    openers = ("[TOOL_CALLS]",)
    markers = ("[ARGS]", "[CALL_ID]")
    bare = ""
    closing = "}"
    id_chars = 9

    def read(self, reader: Reader, parts: Parts, names: frozenset[str]) -> Steps[None]:
        """See `ToolFormat.read`. The marker says that it is a call: any name will do."""
        rules = CallRules()
        char = yield from reader.skip_space()
        if char == "[":
            yield from read_call_list(reader, parts, rules)
        elif char == "{":
            yield from read_call(reader, parts, rules)
        else:
            yield from self._named_call(reader, parts, rules)

    def _named_call(self, reader: Reader, parts: Parts, rules: CallRules) -> Steps[None]:
        name = rules.check_name((yield from reader.run(_NO_NAME, MAX_NAME_CHARS)))
        if (yield from reader.accept("[CALL_ID]")):
            yield from reader.run(_NO_ID, MAX_ID_CHARS)
        yield from reader.expect("[ARGS]")
        if (yield from reader.skip_space()) != "{":
            raise Malformed("arguments are an object")
        parts.begin_call(reader.take(), name)
        yield from stream_arguments(reader, parts, rules)
