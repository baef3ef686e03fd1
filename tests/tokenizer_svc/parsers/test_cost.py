"""What reading costs, counted and not timed: in all as much as the text is long, and for each piece a bound."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.answer_texts import Found, cut, parse, parser
from tests.fakes.counted_reading import counted_reading
from tests.fakes.damaged_answers import options, spoiled
from tokenizer_svc.parsers import answer_parser, reader
from tokenizer_svc.parsers.families import TOOL_FORMATS

UNFINISHED = {
    "hermes": ['{"a":[', '{"a":"', '[{"a":{', '{"name":"f","arguments":{},"a":[', '{"name":"f","arguments":{}} {"a":[',
               '[{"name":"f","arguments":{}},{"a":[', '{"arguments":{"a":"\\"', '{"a', "", " ", '{"a":[\\"'],
    "llama3": ['{"a":[', '{"a":"', '{"name":"f","parameters":{},"a":[', '{"name":"f","parameters":{}};{"a":[',
               '[{"a":[', '[{"name":"f","parameters":{}},{"a":[', '{"name":"f","parameters":{}},{"a":[', "[",
               '[{"name":"f","parameters":{}}', '[{"name":"f","parameters":{"a', '[{"arguments":{"a":"\\"',
               '{"name":"f","parameters":{}}{"a":[', '{"name":"f","parameters":{"a', "{", "x"],
    "mistral": ['{"a":[', '[{"a":{', 'f[ARGS]{"a":[', "f[CALL_ID]", "f", 'f{"a":[', "f{", 'f{"a":1}', "f[CALL_ID]a{",
                'f[ARGS]{"a":1} {', '[{"name":"f"},{"a":['],
    "pythonic": ["[f(a=", "[f(a=[", "[f(a='", "[f(a=''''", '[f(a=\\"', "[f(a=1,b=[", "[f(a=1,b=''''", "[now()][f(a=[",
                 "[now(),f(a=[", "[", "[f(a=1)"],
}  # fmt: skip
"""Beginnings of calls of each format."""

REPEATED = [
    (tools, opener + body)
    for tools, bodies in UNFINISHED.items()
    for opener in ("", *TOOL_FORMATS[tools].openers)
    for body in bodies
    if opener + body
]
REPEATED += [
    (tools, text)
    for tools, known in TOOL_FORMATS.items()
    for opener in (*known.openers, *known.markers, "</think>")
    for text in (opener, opener[:-1], opener[0], f"<think>{opener}", f"<think></think>{opener}", f"\n{opener}")
]
REPEATED += [
    (tools, text) for tools in TOOL_FORMATS for text in ("<think>", "<think></think>", "<think>a</think>", " ")
]

ONCE = [
    ("hermes", '<tool_call>{"a": "', "\\"),
    ("hermes", '<tool_call>{"a": "', "<tool_call>["),
    ("hermes", '<tool_call>{"a": "', "\n"),
    ("hermes", '<tool_call>{"a": ', "["),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": ', "["),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "', "\\"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "', "</tool_cal"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}}', " "),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}', ',"a":1'),
    ("hermes", "a", " "),
    ("hermes", "a", " <"),
    ("llama3", '{"name": "f", "parameters": {}}', " "),
    ("llama3", '{"name": "f", "parameters": {}}', ";"),
    ("llama3", '{"name": "f", "parameters": {}}', ","),
    ("llama3", '{"name": "f", "parameters": {}}', ',{"name": "f", "parameters": {}}'),
    ("llama3", '[{"name": "f", "parameters": {}}', " "),
    ("llama3", '[{"name": "f", "parameters": {}}', ',{"name": "f", "arguments": {}}'),
    ("llama3", '[{"a": ', "["),
    ("llama3", "[", " "),
    ("llama3", "", " "),
    ("mistral", "[TOOL_CALLS]", "f"),
    ("mistral", "[TOOL_CALLS]f[CALL_ID]", "a"),
    ("mistral", "[TOOL_CALLS]f[ARGS]", " "),
    ("mistral", "[TOOL_CALLS]f", " "),
    ("mistral", "[TOOL_CALLS]f{", "["),
    ("pythonic", "[", "f"),
    ("pythonic", "[f(", "a"),
    ("pythonic", "[f(a=", "["),
    ("pythonic", "[f(a='", "\\"),
    ("pythonic", "[f(a='''", "''"),
    ("pythonic", "[f(a=1", ",1"),
    ("pythonic", "[now()", ",now()"),
    ("pythonic", "[now()]", " "),
]

TEXT_CHARS = 4_000
HELD = 400
WORK_PER_CHAR = 40
"""Calls and characters for each character of a text in pieces of three."""
WORK_PER_HELD_CHAR = 10
"""The same for one piece, for each character that may be held back: it is read again, and may be once more."""


@pytest.fixture
def little_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds so small that short texts reach them."""
    monkeypatch.setattr(reader, "MAX_HELD_CHARS", HELD)
    monkeypatch.setattr(reader, "MAX_REREAD_CHARS", HELD)
    monkeypatch.setattr(answer_parser, "MAX_SPACE_CHARS", 100)


def work_on(text: str, piece_chars: int, tools: str, **given_options: object) -> tuple[int, int]:
    """All of the work, and most for one piece or the end."""
    with counted_reading() as work:
        reading, most = parser(tools, "think", **given_options), 0
        for start in [*range(0, len(text), piece_chars), None]:
            before = work.total
            if start is None:
                reading.flush()
            else:
                reading.push(text[start : start + piece_chars])
            most = max(most, work.total - before)
        return work.total, most


@pytest.mark.usefixtures("little_held")
@pytest.mark.parametrize(
    ("tools", "before", "repeated"), [*((tools, "", text) for tools, text in REPEATED), *ONCE], ids=repr
)
def test_all_costs_what_its_length_does_and_a_piece_no_more_than_a_bound(
    tools: str, before: str, repeated: str
) -> None:
    text = before + repeated * (TEXT_CHARS // len(repeated))
    for begins_inside in {False, "think" in repeated}:
        in_all, most = work_on(text, 3, tools, begins_inside=begins_inside)
        assert in_all < WORK_PER_CHAR * len(text)
        assert most < WORK_PER_HELD_CHAR * HELD
        at_once, _ = work_on(text, len(text), tools, begins_inside=begins_inside)
        assert at_once < WORK_PER_CHAR * len(text)


@pytest.mark.parametrize(("tools", "repeated"), [
    ("hermes", '<tool_call>{"a":['), ("mistral", '[TOOL_CALLS]{"a":['), ("pythonic", "<|python_start|>[f(a=["),
    ("pythonic", "<|python_start|>[f(a=''''"), ("llama3", '<|python_tag|>{"a":{'),
    ("llama3", '<|python_tag|>[{"a":{'), ("mistral", '[TOOL_CALLS][{"a":{'),
])  # fmt: skip
def test_the_bounds_that_are_set_hold_an_answer_of_many_openers(tools: str, repeated: str) -> None:
    text = repeated * 8_000
    in_all, most = work_on(text, 64, tools)
    assert in_all < WORK_PER_CHAR * len(text)
    assert most < WORK_PER_HELD_CHAR * reader.MAX_HELD_CHARS
    assert parse([text], tools).content == text


@settings(max_examples=200, deadline=None)
@given(spoiled(), options(), st.randoms(use_true_random=False))
def test_at_the_bounds_nothing_is_lost_and_chunks_do_not_matter(
    text: str, given_options: dict, rng: random.Random
) -> None:
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(reader, "MAX_HELD_CHARS", rng.randint(32, 64))
        changed.setattr(reader, "MAX_REREAD_CHARS", rng.randint(1, 32))
        changed.setattr(answer_parser, "MAX_SPACE_CHARS", rng.randint(1, 8))
        text += " " * rng.randint(0, 80) + text
        whole = parse([text], **given_options)
        assert whole.raw == text
        assert parse(text, **given_options) == whole
        places = tuple(sorted(rng.choices(range(len(text) + 1), k=rng.randint(1, 12))))
        assert parse(cut(text, places), **given_options) == whole


def test_long_arguments_come_through_in_pieces() -> None:
    arguments = json.dumps({"a": "x\n" * 50_000})
    for pieces in ([f"[TOOL_CALLS]f[ARGS]{arguments}"], f"[TOOL_CALLS]f[ARGS]{arguments}"):
        assert parse(pieces, "mistral").calls == [["f", arguments]]


def call(size: int) -> str:
    """Whose arguments come first, so that all of it is held back."""
    return f'<tool_call>{{"arguments": {json.dumps({"a": "x" * size})}, "name": "f"}}</tool_call>'


def test_what_would_be_held_back_beyond_the_bound_is_content() -> None:
    fits, does_not = call(reader.MAX_HELD_CHARS - 100), call(reader.MAX_HELD_CHARS)
    assert parse([fits], "hermes").calls == [["f", json.dumps({"a": "x" * (reader.MAX_HELD_CHARS - 100)})]]
    reading = parser("hermes")
    assert [part for start in range(0, reader.MAX_HELD_CHARS, 7) for part in reading.push(does_not[start : start + 7])]
    assert parse([does_not], "hermes") == Found(content=does_not, raw=does_not)
    later = parse([does_not, " ", fits], "hermes")
    assert later.content == does_not and len(later.calls) == 1, "what comes behind is read as ever"


def test_a_call_behind_one_that_was_broken_off_is_found() -> None:
    broken, whole = '<tool_call>{"name": "f", "arg', '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    found = parse([broken * 100, whole], "hermes")
    assert found.calls == [["now", "{}"]] and found.content == broken * 100


def test_whitespace_before_a_block_belongs_to_it_up_to_a_bound() -> None:
    spaces = " " * (answer_parser.MAX_SPACE_CHARS + 3)
    for text, tools in ((f"a{spaces}<tool_call>", "hermes"), (spaces, "llama3")):
        whole = parse([text + '{"name": "f", "parameters": {}}'], tools)
        assert whole.content == ("a" if tools == "hermes" else "") + "   "
        assert whole == parse(text + '{"name": "f", "parameters": {}}', tools)
        assert len(whole.calls) == 1
