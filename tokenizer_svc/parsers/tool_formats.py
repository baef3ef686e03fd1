"""How model families write tool calls as JSON: Hermes and Qwen, Llama 3, Mistral; and what a format is in general.

Sources: the chat templates of NousResearch/Hermes-2-Pro, Qwen2.5 and Qwen3, Llama 3.1 and 3.2, Mistral v3 to v13
(mistral-common); and the further forms that vLLM's and SGLang's parsers read, since models write them. Python-like
calls are read by `pythonic`.
"""

import re
from typing import Protocol

from tokenizer_svc.parsers.json_calls import (
    MAX_NAME_CHARS,
    CallRules,
    another_call,
    read_calls,
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
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`; several objects or a list inside are read as well."""

    openers = ("<tool_call>",)
    markers = ("</tool_call>",)
    bare = ""
    closing = "</tool_call>"
    id_chars = 0

    def read(self, reader: Reader, parts: Parts, names: frozenset[str]) -> Steps[None]:
        """See `ToolFormat.read`. The marker says that it is a call: any name will do."""
        rules = CallRules(closing=self.closing)
        yield from read_calls(reader, parts, rules)
        while not parts.full:
            yield from reader.skip_space()
            if (yield from reader.accept(self.closing)) or reader.accept_cut(self.closing):
                parts.add(Kind.MARKUP, reader.take())
                return
            reader.rewind()
            if not (yield from another_call(reader, parts, rules)):
                return


class Llama3:
    """`{"name": …, "parameters": {…}}` as the whole answer, perhaps behind `<|python_tag|>`.

    Several come separated by `;`, a comma or nothing, or as a list. Nothing marks such an object as a call, so its name
    must be one of the request's functions.
    """

    openers = ("<|python_tag|>",)
    markers = ()
    bare = "{["
    closing = "}"
    id_chars = 0

    def read(self, reader: Reader, parts: Parts, names: frozenset[str]) -> Steps[None]:
        """See `ToolFormat.read`."""
        rules = CallRules(names)
        yield from read_calls(reader, parts, rules)
        while not parts.full and (yield from another_call(reader, parts, rules, (";", ","))):
            pass


class Mistral:
    """`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]`, or for each call `[TOOL_CALLS]name{…}`, as newer models write.

    Behind the name may stand `[ARGS]`, and before that `[CALL_ID]` with an id, which is passed over.
    """

    openers = ("[TOOL_CALLS]",)
    markers = ("[ARGS]", "[CALL_ID]")
    bare = ""
    closing = "}"
    id_chars = 9

    def read(self, reader: Reader, parts: Parts, names: frozenset[str]) -> Steps[None]:
        """See `ToolFormat.read`. The marker says that it is a call: any name will do."""
        rules = CallRules()
        if (yield from reader.skip_space()) in ("[", "{"):
            yield from read_calls(reader, parts, rules)
        else:
            yield from self._named_call(reader, parts, rules)

    def _named_call(self, reader: Reader, parts: Parts, rules: CallRules) -> Steps[None]:
        name = rules.check_name((yield from reader.run(_NO_NAME, MAX_NAME_CHARS)))
        if (yield from reader.accept("[CALL_ID]")):
            yield from reader.run(_NO_ID, MAX_ID_CHARS)
        if (yield from reader.accept("[ARGS]")):
            yield from reader.skip_space()
        if (yield from reader.peek()) != "{":
            raise Malformed("arguments are an object")
        parts.begin_call(reader.take(), name)
        yield from stream_arguments(reader, parts, rules)
