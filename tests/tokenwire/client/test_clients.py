"""Both clients against a fake gateway: events, outputs, errors, cancellation, deadlines."""

import asyncio
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.gateway import FILES, MODEL, FakeGateway
from tests.fakes.logprobs import logprob_of, logprobs_of
from tokenwire.channels import sync_channel
from tokenwire.client import AsyncClient, Client, Event, Finished, FinishReason, Message, TextDelta
from tokenwire.client.open_stub import OpenStub
from tokenwire.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from tokenwire.status import NEVER_TAKEN
from tokenwire.v1 import gateway_pb2, tokenizer_pb2


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


def test_a_call_that_came_to_a_server_on_its_way_out_is_tried_again(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "failure", Cancelled(NEVER_TAKEN))
    gateway.requests.clear()
    gateway.failures_left = 2
    with Client(gateway.target) as client:
        assert client.generate("again").text() == "again"
    assert len(gateway.requests) == 3


def test_overload_is_the_callers_business(gateway: FakeGateway) -> None:
    gateway.requests.clear()
    with Client(gateway.target, max_attempts=5) as client, pytest.raises(Overloaded) as caught:
        client.generate("overload").text()
    assert len(gateway.requests) == 1 and caught.value.retry_after_s == 1.5
    for bad in (0, 6, 1.5):
        with pytest.raises(ValueError, match="max_attempts"):
            Client(gateway.target, max_attempts=bad)  # type: ignore[arg-type]


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


def test_a_call_that_begins_while_another_thread_closes_the_client_says_so(gateway: FakeGateway) -> None:
    channel = sync_channel(gateway.target)
    stub = OpenStub(channel, gateway.target)
    generate, tokenize = stub.Generate, stub.Tokenize
    stub.close()
    channel.close()
    for method, request in ((generate, gateway_pb2.GenerateRequest()), (tokenize, tokenizer_pb2.TokenizeRequest())):
        with pytest.raises(FailedPrecondition, match="is closed") as caught:
            method(request, timeout=5.0)
        assert caught.value.reason == "CLIENT_CLOSED"


def test_a_stream_that_nobody_holds_any_more_is_cancelled(client: Client, gateway: FakeGateway) -> None:
    async def main() -> None:
        async with AsyncClient(gateway.target) as asynchronous:
            async for event in asynchronous.generate("hang"):
                assert event == TextDelta("hang", 1, (0,))
                break
            assert await asyncio.to_thread(gateway.cancelled.wait, 20)

    for event in client.generate("hang"):
        assert event == TextDelta("hang", 1, (0,))
        break
    assert gateway.cancelled.wait(20)
    gateway.cancelled.clear()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_threads_may_share_a_stream(client: Client) -> None:
    words = [f"w{number}" for number in range(200)]
    stream = client.generate(" ".join(words))
    found: list[Event] = []
    threads = [threading.Thread(target=lambda: found.extend(stream)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(each.text.strip() for each in found if isinstance(each, TextDelta)) == sorted(words)
    assert stream.text() == " ".join(words)


def test_an_asyncio_client_is_made_where_a_loop_runs(gateway: FakeGateway) -> None:
    with pytest.raises(FailedPrecondition, match="none runs here") as caught:
        AsyncClient(gateway.target)
    assert caught.value.reason == "NO_EVENT_LOOP"


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("messages", lambda client: client.chat(Message("user", "a"))),
        ("messages[0]", lambda client: client.chat([{"role": "user", "content": "a"}])),
        ("tools[0]", lambda client: client.chat("a", tools=[{"name": "a"}])),
        ("timeout_s", lambda client: client.chat("a", timeout_s="1")),
    ],
    ids=["a message", "a dict", "a tool", "a time"],
)
def test_what_is_of_a_wrong_type_is_named(client: Client, field: str, call: Callable[[Client], Any]) -> None:
    with pytest.raises(InvalidRequest, match="is not allowed") as caught:
        call(client)
    assert [each.field for each in caught.value.violations] == [field]
