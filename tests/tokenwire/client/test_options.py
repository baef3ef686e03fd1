"""Options of a call, as both clients send them, and what is refused before it is sent."""

import asyncio
from typing import Any

import pytest

from tests.fakes.gateway import MODEL, FakeGateway
from tokenwire.client import AsyncClient, Client, Message, Tool
from tokenwire.client.messages import DEADLINE_GRACE_S
from tokenwire.errors import (
    InvalidRequest,
)
from tokenwire.v1 import common_pb2 as pb


def test_every_option_reaches_the_wire(client: Client, gateway: FakeGateway) -> None:
    client.generate(
        "a", model=MODEL, max_tokens=5, temperature=0.5, top_k=4, top_p=0.25, min_p=0.125, seed=2**64 - 1, stop="END",
        stop_token_ids=[3], include_stop_string=True, ignore_eos=True, skip_special_tokens=False,
        spaces_between_special_tokens=False, split_special_tokens=True, truncation_side="end", max_prompt_tokens=9,
        return_token_ids=True, num_choices=1, truncate=True, timeout_s=9, request_id="mine", priority=-5, tenant="t",
        repetition_penalty=1.5, presence_penalty=0, frequency_penalty=-0.5, logit_bias={9: -1, 3: 0.5},
        allowed_token_ids=[1, 2], banned_sequences=[[5], (6, 7)], min_tokens=2, logprobs=0, prompt_logprobs=3,
        speculation=False,
    ).outputs()  # fmt: skip
    (request,) = gateway.requests
    options, context = request.options, request.context
    assert (request.model, request.truncate) == (MODEL, True)
    assert (request.truncation.side, request.truncation.max_tokens) == (2, 9)
    assert request.split_special_tokens and options.output.HasField("spaces_between_special_tokens")
    assert not options.output.spaces_between_special_tokens
    assert (options.sampling.temperature, options.sampling.top_k) == (0.5, 4)
    assert (options.sampling.top_p, options.sampling.min_p, options.sampling.seed) == (0.25, 0.125, 2**64 - 1)
    assert (options.stop.max_tokens, list(options.stop.stop_strings), list(options.stop.stop_token_ids)) == (
        5, ["END"], [3],
    )  # fmt: skip
    assert options.stop.include_stop_string and options.stop.ignore_eos and options.output.return_token_ids
    assert options.output.HasField("skip_special_tokens") and not options.output.skip_special_tokens
    assert (options.sampling.repetition_penalty, options.sampling.frequency_penalty) == (1.5, -0.5)
    assert options.sampling.HasField("presence_penalty") and options.sampling.presence_penalty == 0
    assert dict(options.sampling.logit_bias) == {3: 0.5, 9: -1}
    assert list(options.sampling.allowed_token_ids) == [1, 2] and options.stop.min_tokens == 2
    assert [list(sequence.ids) for sequence in options.sampling.banned_sequences] == [[5], [6, 7]]
    assert options.output.HasField("logprobs") and (options.output.logprobs, options.output.prompt_logprobs) == (0, 3)
    assert options.HasField("speculation") and not options.speculation
    assert (context.request_id, context.priority, context.tenant) == ("mine", -5, "t")
    assert 0 < context.timeout_ms <= 9000
    (limit,) = gateway.metadata_timeouts
    assert limit is not None and 9 < limit < 9 + DEADLINE_GRACE_S + 1  # the transport rounds up


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"json_schema": {"type": "integer"}}, pb.Constraint(json_schema='{"type": "integer"}')),
        ({"json_schema": "true"}, pb.Constraint(json_schema="true")),
        ({"json_object": True}, pb.Constraint(json_object=True)),
        ({"json_object": False}, pb.Constraint()),
        ({"regex": "[ab]"}, pb.Constraint(regex="[ab]")),
        ({"choice": ["yes", "no"]}, pb.Constraint(choice=pb.ChoiceConstraint(texts=["yes", "no"]))),
        ({"ebnf": 'root ::= "a"'}, pb.Constraint(ebnf='root ::= "a"')),
    ],
)
def test_what_the_output_must_look_like_reaches_the_wire(
    client: Client, gateway: FakeGateway, options: dict, expected: pb.Constraint
) -> None:
    client.generate("a", **options).outputs()
    client.chat("a", **options).outputs()
    assert [request.options.constraint for request in gateway.requests[-2:]] == [expected, expected]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"json_schema": {"const": float("nan")}}, "json_schema"),
        ({"json_schema": {"const": object()}}, "json_schema"),
        ({"regex": 5}, "regex"),
        ({"choice": ["a", None]}, "choice[1]"),
        ({"choice": []}, "options.constraint.choice.texts"),
        ({"ebnf": "\ud800"}, "ebnf"),
        ({"regex": "a", "json_object": True}, "constraint"),
        ({"max_tokens": 99_999_999_999}, "options.stop.max_tokens"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens"),
        ({"top_k": 2**32}, "options.sampling.top_k"),
        ({"stop_token_ids": [2**32]}, "options.stop.stop_token_ids"),
        ({"stop": "\ud800"}, "options.stop.stop_strings"),
        ({"logit_bias": {-1: 1}}, "options.sampling.logit_bias"),
        ({"allowed_token_ids": [2**32]}, "options.sampling.allowed_token_ids"),
        ({"banned_sequences": [[2**32]]}, "options.sampling.banned_sequences"),
        ({"min_tokens": 2**32}, "options.stop.min_tokens"),
        ({"logprobs": 2**32}, "options.output.logprobs"),
        ({"priority": 2**31}, "context.priority"),
        ({"tenant": "\ud800"}, "tenant"),
        ({"model": "\ud800"}, "model"),
        *(({"timeout_s": timeout_s}, "timeout_s") for timeout_s in (1e30, float("inf"), float("nan"), 0, -1)),
    ],
)
def test_what_the_wire_cannot_hold_is_refused_before_it_is_sent(client: Client, options: dict, field: str) -> None:
    for call in (client.generate, client.chat):
        with pytest.raises(InvalidRequest) as caught:
            call("a", **options)
        assert [v.field for v in caught.value.violations] == [field]


def test_texts_and_token_ids_the_wire_cannot_hold_are_named(client: Client) -> None:
    for number in (-1, 2**32, 2**70):
        with pytest.raises(InvalidRequest, match=r"prompts\[1\]\[2\]: "):
            client.generate("a", [1, 2, number])
        with pytest.raises(InvalidRequest, match=r"sequences\[0\]\[0\]: "):
            client.detokenize([number])
    with pytest.raises(InvalidRequest, match=r"prompts\[0\]: .* is not valid Unicode"):
        client.generate("a\udcff")
    with pytest.raises(InvalidRequest, match=r"texts\[1\]: .* is not valid Unicode"):
        client.tokenize("a", "\udcff")
    with pytest.raises(InvalidRequest, match=r"messages\[0\].content: .* is not valid Unicode"):
        client.chat("\udcff")


def test_what_is_no_text_and_no_token_id_is_named(client: Client, gateway: FakeGateway) -> None:
    calls = [
        (lambda: client.tokenize("a", b"x"), "texts[1]"),  # type: ignore[arg-type]
        (lambda: client.tokenize("a", model=None), "model"),  # type: ignore[arg-type]
        (lambda: client.count_tokens(3), "texts[0]"),  # type: ignore[arg-type]
        (lambda: client.detokenize([97], ["a"]), "sequences[1][0]"),  # type: ignore[list-item]
        (lambda: client.detokenize([97, 1.5]), "sequences[0][1]"),  # type: ignore[list-item]
        (lambda: client.detokenize("a"), "sequences[0]"),  # type: ignore[arg-type]
        (lambda: client.detokenize(7), "sequences[0]"),  # type: ignore[arg-type]
        (lambda: client.generate(b"x"), "prompts[0]"),
        (lambda: client.chat([Message("user", b"x")]), "messages[0].content"),  # type: ignore[arg-type]
    ]
    for call, field in calls:
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert [v.field for v in caught.value.violations] == [field]
    assert gateway.requests == []


def test_what_the_template_gets_reaches_the_wire(client: Client, gateway: FakeGateway) -> None:
    fields: dict[str, Any] = {
        "tools": [Tool("f", parameters={"z": 1, "a": 1.0})],
        "template_arguments": {"enable_thinking": False, "name": "Zürich"},
        "documents": [{"b": 1, "a": None}, {}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    }

    async def ask_async() -> None:
        async with AsyncClient(gateway.target) as other:
            await other.chat("a", **fields).text()
            await other.apply_chat_template("a", **fields)

    client.chat("a", **fields).text()
    client.apply_chat_template("a", **fields)
    asyncio.run(ask_async())
    first, *others = [request.conversation for request in gateway.requests]
    assert len(others) == 3 and all(other == first for other in others)
    assert first.tools[0].parameters_json == '{"z": 1, "a": 1.0}'
    assert first.template_arguments_json == '{"enable_thinking": false, "name": "Zürich"}'
    assert list(first.documents_json) == ['{"b": 1, "a": null}', "{}"]
    assert first.HasField("add_generation_prompt") and not first.add_generation_prompt
    assert first.continue_final_message


def test_without_a_word_the_template_decides(client: Client, gateway: FakeGateway) -> None:
    client.chat("a").text()
    conversation = gateway.requests[0].conversation
    assert not conversation.HasField("add_generation_prompt") and not conversation.continue_final_message
    assert conversation.template_arguments_json == "" and not conversation.documents_json


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"template_arguments": '{"a": 1}'}, "template_arguments"),
        ({"template_arguments": {"a": float("inf")}}, "template_arguments"),
        ({"template_arguments": {"a": "\ud800"}}, "template_arguments"),
        ({"template_arguments": {"a": {1}}}, "template_arguments"),
        ({"documents": [{}, "a"]}, "documents[1]"),
        ({"documents": [{}, {"a": float("nan")}]}, "documents[1]"),
        ({"documents": [{"\udc00": 1}]}, "documents[0]"),
        ({"tools": [Tool("f", parameters={"a": "\ud800"})]}, "tools[0].parameters"),
        ({"add_generation_prompt": 1}, "add_generation_prompt"),
        ({"continue_final_message": None}, "continue_final_message"),
    ],
)
def test_what_no_template_can_get_is_named(
    client: Client, gateway: FakeGateway, fields: dict[str, Any], field: str
) -> None:
    for call in (client.chat, client.apply_chat_template):
        with pytest.raises(InvalidRequest) as caught:
            call("a", **fields)
        assert [v.field for v in caught.value.violations] == [field]
    assert gateway.requests == []


def test_the_longest_timeout_is_sent(client: Client) -> None:
    assert client.generate("a", timeout_s=1e9).text() == "a"


def test_without_a_timeout_there_is_none(client: Client, gateway: FakeGateway) -> None:
    client.generate("a").text()
    assert not gateway.requests[0].context.HasField("timeout_ms")


def test_request_ids_are_drawn_and_shown(client: Client, gateway: FakeGateway) -> None:
    first, second = client.generate("a"), client.generate("a")
    assert first.request_id != second.request_id
    first.text()
    second.text()
    assert {r.context.request_id for r in gateway.requests} == {first.request_id, second.request_id}


def test_an_option_that_does_not_exist_is_a_type_error(client: Client) -> None:
    with pytest.raises(TypeError, match="temprature.*allowed are .*temperature"):
        client.generate("a", temprature=0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": -1.0}, "options.sampling.temperature"),
        ({"temperature": float("nan")}, "options.sampling.temperature"),
        ({"top_p": 0.0}, "options.sampling.top_p"),
        ({"max_tokens": 0}, "options.stop.max_tokens"),
        ({"seed": -1}, "options.sampling.seed"),
        ({"num_choices": 0}, "options.num_choices"),
        ({"stop": [""]}, "options.stop.stop_strings"),
        ({"priority": 101}, "context.priority"),
        ({"request_id": "ü"}, "context.request_id"),
    ],
)
def test_bad_values_are_refused_before_a_call_is_made(
    client: Client, gateway: FakeGateway, options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.generate("a", **options)  # type: ignore[arg-type]
    assert [v.field for v in caught.value.violations] == [field]
    assert gateway.requests == []


@pytest.mark.parametrize("prompt", [[-1], [2**32], "half a pair: \ud800"])
def test_prompts_that_fit_no_message_are_refused(client: Client, prompt: str | list[int]) -> None:
    with pytest.raises(InvalidRequest, match=r"prompts\[1\]"):
        client.generate("a", prompt)


def test_no_prompt_and_no_time_are_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="none given"):
        client.generate()
    with pytest.raises(InvalidRequest, match="timeout_s: 0"):
        client.generate("a", timeout_s=0)
