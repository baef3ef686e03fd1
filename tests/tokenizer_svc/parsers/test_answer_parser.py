import json
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.answer_texts import CASES, NAMES, Case, Found, cut, parse, parser
from tests.fakes.damaged_answers import options, spoiled
from tokenizer_svc.parsers.families import TOOL_FORMATS
from tokenizer_svc.parsers.parts import Kind
from tokenizer_svc.parsers.pythonic import MAX_LITERAL_ITEMS

ALL = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@ALL
def test_a_whole_text(case: Case) -> None:
    found = case.parse([case.text])
    assert (found.values(), found.content, found.reasoning) == (case.calls, case.content, case.reasoning)
    assert found.raw == case.text


@ALL
def test_every_chunking_gives_the_same(case: Case) -> None:
    """Character by character, cut at every place, and at some two places."""
    whole = case.parse([case.text])
    assert case.parse(case.text) == whole
    places = range(len(case.text) + 1)
    pairs = list(combinations(places, 2))
    if len(pairs) > 300:
        pairs = random.Random(0).sample(pairs, 300)
    for chosen in [*((place,) for place in places), *pairs]:
        assert case.parse(cut(case.text, chosen)) == whole, chosen


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=400, deadline=None)
@given(spoiled(), options(), st.randoms(use_true_random=False))
def test_nothing_is_lost_and_chunks_do_not_matter(text: str, given_options: dict, rng: random.Random) -> None:
    whole = parse([text], **given_options)
    assert whole.raw == text
    places = tuple(sorted(rng.choices(range(len(text) + 1), k=rng.randint(1, 12))))
    assert parse(cut(text, places), **given_options) == whole
    assert parse(text, **given_options) == whole
    json.dumps([whole.content, whole.reasoning, whole.calls], ensure_ascii=False).encode()
    if not whole.calls and not given_options["reasoning"] and not given_options["hidden"]:
        assert whole.content == text
    if not given_options["tools"]:
        assert not whole.calls
    if given_options["tools"] in ("llama3", "pythonic"):
        assert all(name in NAMES for name, _ in whole.calls)


JSON_KEYS = st.sampled_from(["name", "type", "parameters", "arguments", "description", "function", "a"])
OTHER_JSON = st.recursive(
    st.none() | st.integers() | st.sampled_from(["", "Bob", "{", '"name": "f"', "<|python_tag"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_KEYS, inner, max_size=4),
    max_leaves=12,
)
"""JSON that names no function."""


@settings(max_examples=200, deadline=None)
@given(OTHER_JSON, st.sampled_from([None, 1]), st.sampled_from(["llama3", "pythonic"]))
def test_json_that_calls_nothing_is_content(value: object, indent: int | None, tools: str) -> None:
    text = json.dumps(value, indent=indent)
    assert parse([text], tools) == Found(content=text, raw=text) == parse(text, tools)


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | FLOATS | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(
        ["hermes", "hermes string", "llama3", "llama3 list", "mistral", "mistral names", "mistral args", "pythonic"]
    ),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_any_arguments_come_through(value: object, form: str, ascii_only: bool, rng: random.Random) -> None:
    arguments = json.dumps({"a": value}, ensure_ascii=ascii_only)
    text = {
        "hermes": f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>',
        "hermes string": f'<tool_call>{{"name": "f", "parameters": {json.dumps(arguments)}}}',
        "llama3": f'{{"name": "f", "parameters": {arguments}}}',
        "llama3 list": f'[{{"name": "f", "arguments": {arguments}}}]',
        "mistral": f'[TOOL_CALLS] [{{"name": "f", "arguments": {arguments}}}]',
        "mistral names": f"[TOOL_CALLS]f{arguments}",
        "mistral args": f"[TOOL_CALLS]f[ARGS]{arguments}",
        "pythonic": f"[f(a={value!r})]",
    }[form]
    places = tuple(sorted(rng.choices(range(len(text) + 1), k=5)))
    found = parse(cut(text, places), form.split()[0])
    assert found.values() == [("f", {"a": value})]
    assert form == "pythonic" or found.calls == [["f", arguments]], "JSON is passed on as it was written"
    assert found.content == ""


def test_arguments_are_given_out_as_they_come() -> None:
    reading = parser("hermes")
    assert reading.push('<tool_call>{"name": "f"') == []
    (begun, _) = reading.push(', "arguments": {"a')
    assert (begun.kind, begun.value) == (Kind.CALL, "f")
    assert [(part.kind, part.value) for part in reading.push('b": "c')] == [(Kind.ARGUMENTS, 'b": "c')]
    assert [part.value for part in reading.push('"} }')] == ['"}', ""]


def test_content_waits_for_nothing_but_what_may_begin_a_marker() -> None:
    reading = parser("hermes", "think")
    assert [part.value for part in reading.push("Hello <b>, a < b <tool_")] == ["Hello <b>, a < b"]
    assert [part.value for part in reading.push("box>")] == [" <tool_box>"]


@pytest.mark.parametrize(
    ("tools", "text", "call", "content"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1]}</tool_call>', ["f", '{"a": 1'], "]}</tool_call>"),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": </tool_call> then', ["f", '{"a": '], "then"),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "b', ["f", '{"a": "b'], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}, oops}', ["f", "{}"], ", oops}"),
        ("llama3", '{"name": "f", "parameters": {"a": 1]} tail', ["f", '{"a": 1'], "]} tail"),
        ("llama3", '[{"name": "f", "parameters": {"a": 1]}, tail', ["f", '{"a": 1'], "}, tail"),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": ]', ["f", '{"a": '], "]"),
        ("mistral", '[TOOL_CALLS]f{"a": ] x', ["f", '{"a": '], "] x"),
        ("pythonic", "[f(a=1, b=c)]", ["f", '{"a": 1'], ", b=c)]"),
        ("pythonic", "[now(), f(a=b)]", ["now", "{}"], ", f(a=b)]"),
    ],
)
def test_malformed_arguments_stay_as_they_were_given_out(tools: str, text: str, call: list[str], content: str) -> None:
    found = parse([text], tools)
    assert (found.calls, found.content, found.raw) == ([call], content, text)
    assert parse(text, tools) == found


@pytest.mark.parametrize(
    "argument",
    ["__import__('os')", "", "b", "1 2", "f(a=1)", "[1", "'", "{1: 2}", "1" + "0" * 5_000,
     "[" + "1, " * (MAX_LITERAL_ITEMS - 1) + "1]"],
    ids=lambda argument: argument[:20],
)  # fmt: skip
@pytest.mark.parametrize("opener", ["", "<|python_start|>"])
def test_a_python_call_whose_first_argument_is_malformed_is_content(opener: str, argument: str) -> None:
    text = f"{opener}[f(a={argument}, b=1), now()]"
    assert parse([text], "pythonic") == Found(content=text, raw=text) == parse(text, "pythonic")


def test_a_python_call_is_given_out_with_its_first_argument() -> None:
    reading = parser("pythonic")
    assert reading.push("[f(a=[1, {}]") == []
    assert [(part.kind, part.value) for part in reading.push(", b=")] == [
        (Kind.CALL, "f"), (Kind.ARGUMENTS, '{"a": [1, {}]'),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tools", "text", "arguments"),
    [
        ("hermes", '<tool_call>{"name":"f","arguments":{"a":1}}</tool_call><tool_call>{"name":"f"}', '{"a":1}'),
        ("hermes", '<tool_call>[{"name":"f"}, {"name":"now"}]</tool_call> x', "{}"),
        ("llama3", '{"name":"f","parameters":{"a":1}};{"name":"now","parameters":{}}', '{"a":1}'),
        ("llama3", '{"name":"f","parameters":{"a":1}}, {"name":"now","parameters":{}}', '{"a":1}'),
        ("llama3", '[{"name":"f","arguments":{"a":1}}, {"name":"now","arguments":{}}]', '{"a":1}'),
        ("mistral", "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]now[ARGS]{}", "{}"),
        ("mistral", "[TOOL_CALLS]f{}[TOOL_CALLS]now{}", "{}"),
        ("pythonic", "[f(a=1), now()]", '{"a": 1}'),
    ],
)
def test_with_one_call_allowed_the_answer_ends_behind_it(tools: str, text: str, arguments: str) -> None:
    for pieces in ([text], text):
        found = parse(["Well:\n" if not TOOL_FORMATS[tools].bare else "", *pieces], tools, max_calls=1)
        assert found.calls == [["f", arguments]]
        assert found.content == ("Well:" if not TOOL_FORMATS[tools].bare else "")
    reading = parser(tools, max_calls=1)
    for char in text:
        reading.push(char)
        if reading.finished:
            break
    assert reading.finished and char == {"pythonic": ")"}.get(tools, "}")
