"""Raw answers of models in every format that is parsed, with what is in them; and how a parser is driven in pieces."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tokenizer_svc.parsers.answer_parser import AnswerParser
from tokenizer_svc.parsers.families import TOOL_FORMATS
from tokenizer_svc.parsers.parts import Kind
from tokenizer_svc.parsers.reasoning import REASONING_TAGS

NAMES = frozenset({"get_weather", "now", "f"})


@dataclass
class Found:
    """What a parser made of a text."""

    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    """Name and arguments of each."""
    raw: str = ""

    def values(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


def parser(tools: str = "", reasoning: str = "", **options: Any) -> AnswerParser:
    return AnswerParser(
        tools=TOOL_FORMATS[tools] if tools else None,
        names=NAMES,
        reasoning=REASONING_TAGS[reasoning] if reasoning else None,
        **options,
    )


def parse(pieces: Iterable[str], tools: str = "", reasoning: str = "", **options: Any) -> Found:
    """Push every piece, then flush."""
    reading, found = parser(tools, reasoning, **options), Found()
    parts = [part for piece in pieces for part in reading.push(piece)] + reading.flush()
    for part in parts:
        found.raw += part.raw
        match part.kind:
            case Kind.TEXT:
                found.content += part.value
            case Kind.REASONING:
                found.reasoning += part.value
            case Kind.CALL:
                found.calls.append([part.value, ""])
            case Kind.ARGUMENTS:
                found.calls[-1][1] += part.value
            case Kind.MARKUP:
                assert part.value == ""
    assert reading.push("more") == [] == reading.flush(), "after the end nothing comes"
    return found


def cut(text: str, places: tuple[int, ...]) -> list[str]:
    """The text in pieces, cut at these places, which are in order."""
    return [text[a:b] for a, b in zip((0, *places), (*places, len(text)), strict=True)]


@dataclass(frozen=True)
class Case:
    name: str
    tools: str
    text: str
    calls: list[tuple[str, Any]]
    content: str = ""
    reasoning: str = ""
    tags: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def parse(self, pieces: Iterable[str]) -> Found:
        return parse(pieces, self.tools, self.tags, **self.options)


PARIS = {"city": "Paris"}
NESTED = {"a": [1, {"b": '}]\\"{'}, [], {}], "é": "日本 😀", "n": None, "t": True, "x": -1.5e3}
NESTED_JSON = json.dumps(NESTED, ensure_ascii=False)
ESCAPED_JSON = json.dumps(NESTED)

CASES = [
    Case("hermes", "hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
         [("get_weather", PARIS)]),
    Case("hermes nested", "hermes", f'<tool_call>{{"name":"f","arguments":{NESTED_JSON}}}</tool_call>',
         [("f", NESTED)]),
    Case("hermes escapes", "hermes", f'<tool_call>{{"name":"\\u0066","arguments":{ESCAPED_JSON}}}</tool_call>',
         [("f", NESTED)]),
    Case("hermes between texts", "hermes",
         'Let me see. \n\n<tool_call>{"name": "now", "arguments": {}}</tool_call>\n\nDone. ', [("now", {})],
         "Let me see.Done. "),
    Case("hermes two", "hermes",
         '<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>\n'
         '<tool_call>{"name":"now","arguments":{}}</tool_call>\n',
         [("f", {"a": 1}), ("now", {})]),
    Case("hermes two in one tag", "hermes",
         '<tool_call>\n{"name":"f","arguments":{"a":1}}\n{"name":"now","arguments":{}}\n</tool_call>',
         [("f", {"a": 1}), ("now", {})]),
    Case("hermes list", "hermes",
         '<tool_call>[\n{"name": "f", "arguments": {"a": 1}},\n{"name": "now", "arguments": {}}]</tool_call>',
         [("f", {"a": 1}), ("now", {})]),
    Case("hermes arguments first", "hermes",
         '<tool_call>{"id": 7, "arguments": {"a": {}}, "x": ["<"], "name": "f", "y": 1}</tool_call>!',
         [("f", {"a": {}})], "!"),
    Case("hermes name behind type", "hermes",
         '<tool_call>{"type": "function", "name": "f", "arguments": {"a": 1}, "id": "c1"}</tool_call>',
         [("f", {"a": 1})]),
    Case("hermes arguments in a string", "hermes",
         '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\\\n\\"}"}</tool_call>', [("f", {"a": "\n"})]),
    Case("hermes parameters", "hermes", '<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>',
         [("f", {"a": 1})]),
    Case("hermes parameters in a string and no end", "hermes",
         '<tool_call>\n{"name": "f", "parameters": "{\\"a\\": 1}"}\n<tool_call>\n{"name": "now", "arguments": "{}"}\n',
         [("f", {"a": 1}), ("now", {})]),
    Case("hermes without arguments", "hermes", '<tool_call>{"name": "now"}</tool_call>', [("now", {})]),
    Case("hermes null arguments", "hermes", '<tool_call>{"arguments": null, "name": "now"}</tool_call>', [("now", {})]),
    Case("hermes without a brace at the end", "hermes",
         '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call> ok', [("f", {"a": 1})], "ok"),
    Case("hermes without an end", "hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}', [("f", {"a": 1})]),
    Case("hermes cut in its end", "hermes",
         '<tool_call>{"name": "f", "arguments": {"a": 1}}\n</tool', [("f", {"a": 1})]),
    Case("hermes with its marker in a string", "hermes",
         '<tool_call>{"name": "f", "arguments": {"a": "</tool_call><tool_call>{"}}</tool_call>',
         [("f", {"a": "</tool_call><tool_call>{"})]),
    Case("hermes false start", "hermes",
         'A <tool_call> is <tool_call>{"nam": 1} then <tool_call>{"name":"f","arguments":{}}</tool_call>', [("f", {})],
         'A <tool_call> is <tool_call>{"nam": 1} then'),
    Case("llama", "llama3", '{"name": "get_weather", "parameters": {"city": "Paris"}}', [("get_weather", PARIS)]),
    Case("llama with its tag", "llama3", f'\n<|python_tag|>{{"name": "f", "parameters": {NESTED_JSON}}}',
         [("f", NESTED)]),
    Case("llama several", "llama3",
         '{"name": "f", "parameters": {"a": 1}}; {"type": "function", "name": "now", "parameters": {}} ;\n'
         '{"name": "f", "parameters": {}}', [("f", {"a": 1}), ("now", {}), ("f", {})]),
    Case("llama commas", "llama3",
         '{"name": "f", "parameters": {"a": 1}}, {"name": "now", "arguments": {}}\n,{"name": "f", "parameters": {}}',
         [("f", {"a": 1}), ("now", {}), ("f", {})]),
    Case("llama blanks", "llama3",
         '<|python_tag|>{"name": "f", "parameters": {"a": 1}} {"name": "now", "parameters": {}}\n\n'
         '{"name": "f", "parameters": {}}{"name": "now", "parameters": null}',
         [("f", {"a": 1}), ("now", {}), ("f", {}), ("now", {})]),
    Case("llama list", "llama3",
         f'\n[\n{{"name": "f", "parameters": {NESTED_JSON}}},\n'
         '{"type": "function", "name": "now", "arguments": {}}\n]\n',
         [("f", NESTED), ("now", {})]),
    Case("llama list behind its tag", "llama3", '<|python_tag|>[{"name": "now", "parameters": {}}] Done.',
         [("now", {})], "Done."),
    Case("llama list without an end", "llama3", '[{"name": "f", "parameters": {"a": 1}}', [("f", {"a": 1})]),
    Case("llama arguments first and in a string", "llama3", '{"arguments": "{\\"a\\": 1}", "name": "f"}',
         [("f", {"a": 1})]),
    Case("llama list that is no call", "llama3",
         '[{"name": "Bob", "parameters": {}}, {"name": "now", "parameters": {}}]', [],
         '[{"name": "Bob", "parameters": {}}, {"name": "now", "parameters": {}}]'),
    Case("llama list of other things", "llama3", '[Paris](https://paris.fr), [1], []', [],
         '[Paris](https://paris.fr), [1], []'),
    Case("llama list of names", "llama3", '[{"name": "now"}, {"name": "f"}]', [], '[{"name": "now"}, {"name": "f"}]'),
    Case("llama definition of a tool", "llama3",
         '[{"name": "now", "description": "The time", "parameters": {"type": "object"}}]', [],
         '[{"name": "now", "description": "The time", "parameters": {"type": "object"}}]'),
    Case("llama second of a list is no call", "llama3", '[{"name": "now", "parameters": {}}, {"name": "Bob"}]',
         [("now", {})], ', {"name": "Bob"}]'),
    Case("llama text behind a comma", "llama3", '{"name": "now", "parameters": {}}, and so on', [("now", {})],
         ", and so on"),
    Case("llama and text", "llama3", '{"name": "now", "parameters": {}}\nThat is it.', [("now", {})], "That is it."),
    Case("llama JSON that is no call", "llama3", '{"name": "Bob", "parameters": {"age": 3}}', [],
         '{"name": "Bob", "parameters": {"age": 3}}'),
    Case("llama JSON inside a text", "llama3", 'So: {"name": "now", "parameters": {}}', [],
         'So: {"name": "now", "parameters": {}}'),
    Case("llama second is no call", "llama3", '{"name": "now", "parameters": {}}; {"name": "Bob"}', [("now", {})],
         '; {"name": "Bob"}'),
    Case("mistral", "mistral",
         '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "now", "arguments": {}}]',
         [("get_weather", PARIS), ("now", {})]),
    Case("mistral with ids", "mistral", 'Yes. [TOOL_CALLS][{"arguments": {"a": 1}, "name": "f", "id": "abcdefghi"}]',
         [("f", {"a": 1})], "Yes."),
    Case("mistral names", "mistral", f'[TOOL_CALLS]f[ARGS]{NESTED_JSON}[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{{}}',
         [("f", NESTED), ("now", {})]),
    Case("mistral names alone", "mistral",
         f'Yes. [TOOL_CALLS]f{NESTED_JSON}\n[TOOL_CALLS]now{{}}'
         '[TOOL_CALLS] f[CALL_ID]abcdefghi[ARGS] {"a": 1} Done.',
         [("f", NESTED), ("now", {}), ("f", {"a": 1})], "Yes.Done."),
    Case("mistral name and no arguments", "mistral",
         "[TOOL_CALLS]f {} [TOOL_CALLS]f[CALL_ID]a [TOOL_CALLS]f[ARGS]1", [],
         "[TOOL_CALLS]f {} [TOOL_CALLS]f[CALL_ID]a [TOOL_CALLS]f[ARGS]1"),
    Case("mistral no call", "mistral", "[TOOL_CALLS] are a thing", [], "[TOOL_CALLS] are a thing"),
    Case("pythonic", "pythonic", '[get_weather(city="Paris"), now()]', [("get_weather", PARIS), ("now", {})]),
    Case("pythonic literals", "pythonic",
         """[f(a=[1, {'b': "}]\\\\\\"{"}, [], {}], é='日本 😀', n=None, t=True , x=-1.5e3,)]""", [("f", NESTED)]),
    Case("pythonic names of JSON", "pythonic",
         "<|python_start|>[f(n=null, t=true, u='''it's, ok)''', v=(1, 2))]<|python_end|>",
         [("f", {"n": None, "t": True, "u": "it's, ok)", "v": [1, 2]})]),
    Case("pythonic list that is no call", "pythonic", "[1, 2, f(3)]", [], "[1, 2, f(3)]"),
    Case("pythonic unknown function", "pythonic", "[print(a=1)]", [], "[print(a=1)]"),
    Case("pythonic positional", "pythonic", "[f(1)]", [], "[f(1)]"),
    Case("pythonic second is no call", "pythonic", "[now(), g(a=1)]", [("now", {})], ", g(a=1)]"),
    Case("thinking", "", "<think>\nHm.\nYes. \n</think>\n\nParis.", [], "Paris.", "Hm.\nYes.", "think"),
    Case("thinking begun by the prompt", "",
         "Hm. < and </thin.</think>Paris. ", [], "Paris. ", "Hm. < and </thin.", "think",
         {"begins_inside": True}),
    Case("thinking without an end", "", "<think>Hm. </th", [], "", "Hm. </th", "think"),
    Case("no thinking", "", " Use <think> and </think>.", [], " Use <think> and </think>.", "", "think"),
    Case("thinking twice begun", "", "<think>\nHm.</think>Ja", [], "Ja", "Hm.", "think", {"begins_inside": True}),
    Case("thinking of nothing", "", "<think>\n\n</think>\n\nJa", [], "Ja", "", "think"),
    Case("brackets", "mistral", '[THINK]Hm.[/THINK][TOOL_CALLS]now[ARGS]{}', [("now", {})], "", "Hm.", "mistral"),
    Case("thinking and calls", "hermes",
         '<think>I could <tool_call>{"name":"f","arguments":{}}</tool_call>.</think>\n\n'
         '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<think>Again?</think>\nDone',
         [("now", {})], "Done", 'I could <tool_call>{"name":"f","arguments":{}}</tool_call>.Again?', "think"),
    Case("thinking and a bare call", "llama3", '<think>Hm</think>\n{"name": "now", "parameters": {}}',
         [("now", {})], "", "Hm", "think"),
    Case("thinking in brackets and a bare list", "pythonic", "[THINK]Hm.[/THINK]\n[now()]", [("now", {})], "", "Hm.",
         "mistral"),
    Case("thinking in brackets and a bare list of JSON", "llama3",
         '[THINK]Hm.[/THINK] [{"name": "now", "parameters": {}}]', [("now", {})], "", "Hm.", "mistral"),
    Case("thinking and a bare list", "pythonic", "Hm</think>\n\n[now()]", [("now", {})], "", "Hm", "think",
         {"begins_inside": True}),
    Case("hidden markers", "hermes", 'a </tool_call> b <tool_call>c</think>', [], "a  b c</think>", "", "",
         {"hidden": frozenset({"<tool_call>", "</tool_call>"})}),
    Case("hidden marker that begins like a list", "llama3", " [/THINK] a[/THINK]", [], "  a", "", "mistral",
         {"hidden": frozenset({"[THINK]", "[/THINK]"})}),
    Case("plain text", "hermes", "Paris is < London, \n {or} [so]. \n", [], "Paris is < London, \n {or} [so]. \n"),
]  # fmt: skip
