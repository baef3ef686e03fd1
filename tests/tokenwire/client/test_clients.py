"""Both clients against a fake gateway: events, outputs, errors, cancellation, deadlines."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.gateway import FILES, MODEL, FakeGateway, running_gateway
from tests.fakes.logprobs import logprob_of, logprobs_of
from tokenwire.client import AsyncClient, Client, Finished, FinishReason, Message, TextDelta, Tool
from tokenwire.client.messages import DEADLINE_GRACE_S
from tokenwire.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from tokenwire.v1 import common_pb2 as pb


@pytest.fixture(scope="module")
def gateway() -> Iterator[FakeGateway]:
    with running_gateway() as fake:
        yield fake


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    gateway.requests.clear()
    gateway.metadata_timeouts.clear()
    gateway.cancelled.clear()
    with Client(gateway.target) as client:
        yield client


def test_events_come_in_order_and_end_with_the_terminal(client: Client) -> None:
    events = list(client.generate("to be or not", max_tokens=3))
    assert [e.text for e in events if isinstance(e, TextDelta)] == ["to", " be", " or"]
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.terminal.reason is FinishReason.LENGTH
    assert last.terminal.usage.completion_tokens == 3
    assert last.terminal.model_timings is not None
    assert last.terminal.model_timings.decode_s == pytest.approx(0.1)


def test_text_joins_the_deltas(client: Client) -> None:
    assert client.generate("to be or not").text() == "to be or not"


def test_several_prompts_and_choices_come_back_by_index(client: Client) -> None:
    outputs = client.generate("a b", [7, 8, 9], num_choices=2).outputs()
    assert [(o.index, o.choice, o.text) for o in outputs] == [
        (0, 0, "a b"), (0, 1, "a b"), (1, 0, "7 8 9"), (1, 1, "7 8 9"),
    ]  # fmt: skip
    assert outputs[2].token_ids == (0, 1, 2)


def test_text_of_several_outputs_is_a_mistake_of_the_caller(client: Client) -> None:
    with pytest.raises(ValueError, match="has 2: use outputs"):
        client.generate("a", "b").text()


def test_chat_sends_the_conversation(client: Client, gateway: FakeGateway) -> None:
    answer = client.chat([Message("system", "be kind"), Message("user", "hello there")], temperature=0).text()
    assert answer == "hello there"
    (request,) = gateway.requests
    assert [(m.role, m.content) for m in request.conversation.messages] == [
        ("system", "be kind"), ("user", "hello there"),
    ]  # fmt: skip
    assert request.options.sampling.HasField("temperature")
    assert request.options.sampling.temperature == 0
    assert not request.options.sampling.HasField("top_p")


def test_a_text_is_one_message_of_the_user(client: Client, gateway: FakeGateway) -> None:
    assert client.chat("hello there").text() == "hello there"
    assert gateway.requests[0].conversation.messages[0].role == "user"


def test_log_probabilities_come_with_events_and_whole_outputs(client: Client) -> None:
    for stream in (
        client.generate("to be or", logprobs=2, prompt_logprobs=1),
        client.chat("to be or", logprobs=2, prompt_logprobs=1),
    ):
        deltas = [event for event in stream if isinstance(event, TextDelta)]
        expected = [logprob_of(i, 2, text=text) for i, text in enumerate(["to", " be", " or"])]
        assert [delta.logprobs for delta in deltas] == [(logprob,) for logprob in expected]
        assert [delta.prompt_logprobs for delta in deltas] == [tuple(logprobs_of(range(1, 4), 1)), (), ()]
        (output,) = stream.outputs()
        assert output.logprobs == tuple(expected) and output.prompt_logprobs == tuple(logprobs_of(range(1, 4), 1))
    (plain,) = client.generate("to be").outputs()
    assert plain.logprobs == plain.prompt_logprobs == ()


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


def test_errors_come_typed_with_their_details(client: Client) -> None:
    with pytest.raises(Overloaded) as caught:
        client.generate("overload").text()
    assert caught.value.retry_after_s == 1.5
    with pytest.raises(Internal) as internal:
        client.generate("bug").text()
    assert "secret" not in str(internal.value)
    with pytest.raises(InvalidRequest, match="'other' is not served"):
        client.tokenize("a", model="other")


def test_an_output_cut_short_does_not_pass_for_a_text(client: Client) -> None:
    with pytest.raises(DeadlineExceeded, match="after 1 tokens"):
        client.generate("deadline").text()
    with pytest.raises(Unavailable, match="model tier was lost"):
        client.generate("lost").text()


def test_of_several_outputs_the_others_go_on(client: Client) -> None:
    lost, whole = client.generate("lost", "a b").outputs()
    assert lost.text == "lost"
    assert lost.error is not None and lost.error.reason == "MODEL_LOST"
    assert (whole.text, whole.error) == ("a b", None)


def test_a_stream_without_its_terminal_is_an_error(client: Client) -> None:
    with pytest.raises(Unavailable, match="1 outputs unfinished"):
        client.generate("cut").text()


def test_closing_a_stream_cancels_the_request(client: Client, gateway: FakeGateway) -> None:
    with client.generate("hang") as stream:
        assert next(stream) == TextDelta("hang", 1, (0,))
    assert gateway.cancelled.wait(10)
    with pytest.raises(Cancelled):
        next(stream)


def test_nobody_listening_is_unavailable() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(Unavailable):
        client.generate("a").text()


def test_tokens_and_models(client: Client) -> None:
    assert [e.token_ids for e in client.tokenize("ab", "c")] == [(97, 98), (99,)]
    assert client.detokenize([97, 98], [99]) == ["ab", "c"]
    assert client.count_tokens("ab", "c", conversations=[[Message("user", "abc")]]) == [2, 1, 3]
    rendered = client.apply_chat_template("ab", tokenize=True)
    assert (rendered.text, rendered.token_ids) == ("ab", (97, 98))
    assert [(m.name, m.max_context_tokens, m.vocab_size) for m in client.models()] == [(MODEL, 64, 128)]


async def gather_async(target: str) -> list[object]:
    async with AsyncClient(target) as client:
        texts = await asyncio.gather(*(client.generate(f"n {i}").text() for i in range(20)))
        events = [event async for event in client.chat("x y")]
        encodings = await client.tokenize("ab")
        return [texts, events, encodings[0].token_ids, await client.detokenize([97]), (await client.models())[0].name,
            await client.count_tokens("ab"), (await client.apply_chat_template("ab")).text,
            (await client.tokenizer()).files]  # fmt: skip


def test_the_asyncio_client_does_the_same(gateway: FakeGateway) -> None:
    texts, events, ids, detokenized, model, counts, rendered, files = asyncio.run(gather_async(gateway.target))
    assert texts == [f"n {i}" for i in range(20)]
    assert isinstance(events, list)
    assert [type(e) for e in events] == [TextDelta, TextDelta, Finished]
    assert (ids, detokenized, model) == ((97, 98), ["a"], MODEL)
    assert (counts, rendered, files) == ([2], "ab", FILES)


def test_asyncio_errors_and_cancellation(client: Client, gateway: FakeGateway) -> None:
    async def main() -> None:
        async with AsyncClient(gateway.target) as client:
            with pytest.raises(Overloaded):
                await client.generate("overload").text()
            with pytest.raises(InvalidRequest, match="'other'"):
                await client.tokenize("a", model="other")
            async with client.generate("hang") as stream:
                assert await anext(stream) == TextDelta("hang", 1, (0,))
            with pytest.raises(Cancelled):
                await anext(stream)

    asyncio.run(main())
    assert gateway.cancelled.wait(10)


def test_cancelling_the_task_cancels_the_request(client: Client, gateway: FakeGateway) -> None:
    async def main() -> None:
        async with AsyncClient(gateway.target) as client:
            task = asyncio.create_task(client.generate("hang").text())
            while not gateway.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert gateway.cancelled.wait(10)


def test_a_tokenizer_is_saved_as_the_server_has_it(client: Client, tmp_path: Path) -> None:
    found = client.tokenizer()
    assert (found.files, found.vocabulary_fingerprint) == (FILES, "v")
    found.save(tmp_path / "new")
    assert {name: (tmp_path / "new" / name).read_bytes() for name in FILES} == FILES


def test_files_that_did_not_arrive_whole_are_refused(client: Client, gateway: FakeGateway) -> None:
    gateway.damages = True
    try:
        with pytest.raises(Internal, match="tokenizer.json did not arrive whole"):
            client.tokenizer()
    finally:
        gateway.damages = False
    with pytest.raises(InvalidRequest, match="other"):
        client.tokenizer("other")


def test_a_server_may_not_name_files_outside_the_folder(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILES, "../outside", b"x")
    with pytest.raises(Internal, match="no name that a server may give"):
        client.tokenizer()


@pytest.mark.parametrize(("failures", "max_attempts", "fine"), [(2, 3, True), (2, 2, False), (1, 1, False)])
def test_a_call_that_no_server_took_is_tried_again(
    gateway: FakeGateway, failures: int, max_attempts: int, fine: bool
) -> None:
    gateway.requests.clear()
    gateway.failures_left = failures
    with Client(gateway.target, max_attempts=max_attempts) as client:
        if fine:
            assert client.generate("flaky then fine").text() == "flaky then fine"
        else:
            with pytest.raises(Unavailable, match="not now"):
                client.generate("flaky then fine").text()
    assert len(gateway.requests) == min(failures + 1, max_attempts)

    async def main() -> None:
        gateway.failures_left = failures
        async with AsyncClient(gateway.target, max_attempts=max_attempts) as client:
            if fine:
                assert await client.chat("flaky then fine").text() == "flaky then fine"
            else:
                with pytest.raises(Unavailable, match="not now"):
                    await client.chat("flaky then fine").text()

    asyncio.run(main())
    gateway.failures_left = 0


def test_overload_is_the_callers_business(gateway: FakeGateway) -> None:
    gateway.requests.clear()
    with Client(gateway.target, max_attempts=5) as client, pytest.raises(Overloaded) as caught:
        client.generate("overload").text()
    assert len(gateway.requests) == 1 and caught.value.retry_after_s == 1.5
    for bad in (0, 6):
        with pytest.raises(ValueError, match="max_attempts"):
            Client(gateway.target, max_attempts=bad)


USES = {
    "generate": lambda client: client.generate("a"),
    "chat": lambda client: client.chat("a"),
    "session": lambda client: client.session(),
    "tokenize": lambda client: client.tokenize("a"),
    "embed": lambda client: client.embed("a"),
    "tokenizer": lambda client: client.tokenizer(),
    "models": lambda client: client.models(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_client_that_is_closed_says_so(use: Callable[[Any], Any], gateway: FakeGateway) -> None:
    async def main() -> None:
        closed = AsyncClient(gateway.target)
        await closed.close()
        await closed.close()
        with pytest.raises(FailedPrecondition, match="is closed") as caught:
            found = use(closed)
            await found
        assert caught.value.reason == "CLIENT_CLOSED"

    client = Client(gateway.target)
    with client:
        stream = client.generate("hang")
        next(stream)
    with pytest.raises(Cancelled):
        stream.text()
    client.close()
    with pytest.raises(FailedPrecondition, match="is closed") as caught:
        use(client)
    assert caught.value.reason == "CLIENT_CLOSED"
    asyncio.run(main())
