"""Calls that must be made: what the constraint allows is what the family's parser reads, and nothing else."""

import json
import re

import pytest

from model_svc.grammar.compiler import verdict_on
from model_svc.grammar.library import new_matcher
from model_svc.grammar.vocabulary import vocabulary_of
from tests.fakes.tool_model import WEATHER
from tokenizer_svc.answers import AnswerFormat
from tokenizer_svc.chat_template import ChatMessage, Conversation
from tokenizer_svc.parsers.families import TOOL_FORMATS
from tokenizer_svc.parsers.forced_calls import forced_calls
from tokenwire.constraints import Constraint, ConstraintForm, FreeText
from tokenwire.errors import InvalidRequest

TIME = {"type": "function", "function": {"name": 'the "time"'}}
MARKERS = {"<tool_call>": 200, "</tool_call>": 201, "[TOOL_CALLS]": 202}
KNOWN = vocabulary_of(
    {byte: bytes([byte]) for byte in range(128)} | {200: b"<tool_call>", 201: b"</tool_call>", 202: b"[TOOL_CALLS]"},
    MARKERS, 210,
)  # fmt: skip
PLAIN = vocabulary_of({byte: bytes([byte]) for byte in range(128)}, {}, 128)


def accepts(constraint: Constraint, text: str, *, special: bool) -> bool:
    known = KNOWN if special else PLAIN
    verdict, _ = verdict_on(constraint, known)
    ids: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, MARKERS)) + ")", text):
        ids += [MARKERS[piece]] if special and piece in MARKERS else list(piece.encode())
    matcher = new_matcher(known, verdict.take())
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


CALLS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn"}}\n</tool_call>',
    "llama3": '{"name": "get_weather", "parameters": {"city": "Bonn"}}',
    "mistral": '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Bonn"}}]',
}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_allowed_is_read_back_as_the_call(name: str, special: bool) -> None:
    calls = forced_calls(TOOL_FORMATS[name], [WEATHER, TIME], "*", several=False)
    constraint, text = Constraint(ConstraintForm.CALLS, calls=calls), CALLS[name]
    no_city, other = text.replace('"city"', '"town"'), text.replace("get_weather", "get_money")
    time = text.replace("get_weather", 'the \\"time\\"').replace('{"city": "Bonn"}', "{}")
    for allowed in (text, text.replace(": {", ": {\n  "), time):
        assert accepts(constraint, allowed, special=special), allowed
    for wrong in ("", "Bonn", no_city, other, text + text, time.replace("{}", '{"a": 1}'), "Well. " + text):
        assert not accepts(constraint, wrong, special=special), wrong
    behind = Constraint(ConstraintForm.CALLS, calls=calls, before=FreeText("<think>", "</think>", is_open=True))
    assert accepts(behind, f"I need it.</think>\n\n{text}", special=special)

    splitter = AnswerFormat(tools=TOOL_FORMATS[name]).split(Conversation((ChatMessage("user", ""),), (WEATHER,)), "")
    assert splitter is not None
    assert splitter.push(text) + splitter.finish("") == ""
    parsed = splitter.take()
    assert parsed is not None
    assert [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls] == [
        ("get_weather", {"city": "Bonn"})
    ]


def test_several_calls_may_come_where_the_family_has_a_mark_for_each() -> None:
    text = CALLS["hermes"]
    several = forced_calls(TOOL_FORMATS["hermes"], [WEATHER], "*", several=True)
    constraint = Constraint(ConstraintForm.CALLS, calls=several)
    assert accepts(constraint, text, special=True) and accepts(constraint, f"{text}\n{text}", special=True)
    assert not accepts(constraint, "\n".join([text] * 17), special=True)
    named = forced_calls(TOOL_FORMATS["hermes"], [TIME, WEATHER], "get_weather", several=True)
    assert named is not None and named.max_calls == 1
    assert [form.field for form in named.forms] == ["conversation.tools[1].parameters_json"]


def test_a_schema_that_cannot_be_obeyed_is_refused_under_the_name_of_its_tool() -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"not": {}}}}}}
    calls = forced_calls(TOOL_FORMATS["hermes"], [WEATHER, bad], "*", several=True)
    error = verdict_on(Constraint(ConstraintForm.CALLS, calls=calls), PLAIN)[0].error
    assert isinstance(error, InvalidRequest)
    assert error.violations[0].field == "conversation.tools[1].parameters_json"
    assert error.violations[0].description == 'at /properties/x/not: not supported: "not"'


def test_calls_that_are_not_json_cannot_be_forced() -> None:
    assert forced_calls(TOOL_FORMATS["pythonic"], [WEATHER], "*", several=True) is None
    assert forced_calls(None, [WEATHER], "*", several=True) is None
    answers = AnswerFormat(tools=TOOL_FORMATS["pythonic"])
    asked = Conversation((ChatMessage("user", ""),), (WEATHER,), required_tool="*")
    with pytest.raises(InvalidRequest, match="pythonic") as caught:
        answers.forced_calls(asked)
    assert caught.value.violations[0].field == "conversation.required_tool"
    assert answers.forced_calls("text") is None
