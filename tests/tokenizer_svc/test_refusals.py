import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.live_tokenizer_tier import (
    TextPeer,
    text_request,
    tokenizer_over_fake,
)
from tokenwire.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    TokenwireError,
    Unsupported,
)
from tokenwire.requests import FinishReason, Terminal
from tokenwire.v1 import common_pb2, tokenizer_pb2


def change(field: str, value: Any) -> Callable[[Any], None]:
    """Set a field by its dotted path."""

    def apply(request: Any) -> None:
        *path, name = field.split(".")
        for part in path:
            request = getattr(request, part)
        if isinstance(value, list):
            getattr(request, name).extend(value)
        else:
            setattr(request, name, value)

    return apply


def spoil_document(request: Any) -> None:
    request.conversation.documents_json.extend(("{}", '{"a": [1e999]}'))


def spoil_arguments(request: Any) -> None:
    request.conversation.messages.add(role="user", content="x")
    request.conversation.template_arguments_json = '{"a": NaN}'


BAD: list[tuple[Callable[[Any], None], type[TokenwireError], tuple[str, ...]]] = [
    (change("model", "gpt-9"), NotFound, ("model", "gpt-9")),
    (lambda r: r.ClearField("text"), InvalidRequest, ("input", "text, token_ids")),
    (change("text", ""), InvalidRequest, ("text", "empty")),
    (lambda r: r.token_ids.SetInParent(), InvalidRequest, ("input", "empty")),
    (change("token_ids.ids", [1, 10**6]), InvalidRequest, ("token_ids.ids[1]", "1000000")),
    (lambda r: r.conversation.SetInParent(), InvalidRequest, ("conversation.messages",)),
    (change("fingerprint.vocabulary", "sha256:x"), FailedPrecondition, ("fingerprint.vocabulary", "sha256:x")),
    (change("text", "x " * 40), InvalidRequest, ("input", "32", "truncate")),
    (change("options.stop.max_tokens", 32), InvalidRequest, ("options.stop.max_tokens", "32")),
    (change("options.stop.max_tokens", 31), InvalidRequest, ("options.stop.max_tokens", "31", "at most")),
    (change("options.stop.max_tokens", 0), InvalidRequest, ("options.stop.max_tokens", "0")),
    (change("options.sampling.temperature", -1), InvalidRequest, ("options.sampling.temperature", "-1")),
    (change("options.sampling.temperature", float("nan")), InvalidRequest, ("options.sampling.temperature", "nan")),
    (change("options.sampling.top_p", 0), InvalidRequest, ("options.sampling.top_p", "(0, 1]")),
    (change("options.stop.stop_strings", [""]), InvalidRequest, ("options.stop.stop_strings", "1 to 1024")),
    (change("options.stop.stop_strings", ["x"] * 17), InvalidRequest, ("options.stop.stop_strings", "17", "16")),
    (change("options.num_choices", 500), InvalidRequest, ("options.num_choices", "500", "128")),
    (lambda r: r.conversation.tools.add(name="f", strict=True), Unsupported, ("conversation.tools[0].strict", "built")),
    (change("conversation.required_tool", "*"), InvalidRequest, ("conversation.required_tool", "no tools to call")),
    (lambda r: r.conversation.tools.add(), InvalidRequest, ("conversation.tools[0].name", "empty")),
    (spoil_arguments, InvalidRequest, ("conversation.template_arguments_json", "NaN")),
    (spoil_document, InvalidRequest, ("conversation.documents_json[1]", "1e999 is too large")),
    (change("context.request_id", "é"), InvalidRequest, ("context.request_id", "ASCII")),
    (change("context.priority", 101), InvalidRequest, ("context.priority", "101")),
]


@pytest.mark.parametrize(("spoil", "kind", "words"), BAD, ids=lambda value: value[0] if type(value) is tuple else "")
def test_bad_input_is_refused_by_name_and_the_session_goes_on(
    trained_folder: Path, spoil: Callable[[Any], None], kind: type[TokenwireError], words: tuple[str, ...]
) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, max_context_tokens=32) as (fake, live, peer):
            request = text_request("hello")
            spoil(request)
            await peer.submit(1, request)
            terminal = await peer.end(1)
            assert terminal.reason is FinishReason.ERROR
            assert type(terminal.error) is kind
            assert all(word in terminal.error.message for word in words), terminal.error.message
            assert kind in (NotFound, FailedPrecondition) or terminal.error.violations[0].field == words[0]
            await peer.submit(1000, text_request("fine"))
            assert (await peer.end(1000)).reason is FinishReason.LENGTH
            assert len(fake.requests) == 1
            await live.until_idle()

    asyncio.run(main())


def test_an_encoder_is_asked_for_no_text(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, generates=False, embedding_size=4) as (_, _, peer):
            conversation = text_request("x")
            conversation.conversation.messages.add(role="user", content="x")
            for handle, request in enumerate((text_request("x"), conversation), start=1):
                await peer.submit(handle, request)
                error = (await peer.end(handle)).error
                assert isinstance(error, FailedPrecondition) and error.reason == "MODEL_DOES_NOT_GENERATE"

    asyncio.run(main())


def test_every_choice_of_a_refused_request_gets_its_end(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, _, peer):
            request = text_request("hello")
            request.model = "other"
            request.options.num_choices = 3
            await peer.submit(4, request)
            for handle in (4, 5, 6):
                assert isinstance((await peer.end(handle)).error, NotFound)

    asyncio.run(main())


def test_a_request_id_may_not_run_twice_on_a_session(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (fake, live, peer):
            await peer.submit(1, text_request("hello", request_id="same"))
            down = await fake.request()
            await peer.submit(2, text_request("hello", request_id="same"))
            assert isinstance((await peer.end(2)).error, AlreadyExists)
            other = await TextPeer.open(live)
            await other.submit(1, text_request("hello", request_id="same"))
            await fake.request(1)
            await down.end(Terminal(FinishReason.LENGTH))
            await peer.end(1)
            await peer.submit(3, text_request("hello", request_id="same"))
            await fake.request(2)

    asyncio.run(main())


def test_more_requests_than_allowed_are_refused_at_once(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, {"max_requests": 2}, hold=True) as (fake, _, peer):
            for handle in (1, 2, 3):
                await peer.submit(handle, text_request("hello"))
            error = (await peer.end(3)).error
            assert isinstance(error, Overloaded) and error.retry_after_s
            await (await fake.request()).end(Terminal(FinishReason.LENGTH))
            await peer.end(1)
            await peer.submit(4, text_request("hello"))
            await fake.request(2)

    asyncio.run(main())


@pytest.mark.parametrize(("handles", "choices"), [((0,), 1), ((5, 5), 1), ((5, 3), 1), ((5, 6), 2), ((2**32 - 1,), 2)])
def test_a_handle_out_of_order_ends_the_session(trained_folder: Path, handles: tuple[int, ...], choices: int) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, hold=True) as (_, live, peer):
            for handle in handles:
                request = text_request("hello")
                request.options.num_choices = choices
                await peer.submit(handle, request)
            assert await peer.status() is grpc.StatusCode.INVALID_ARGUMENT
            await live.until_idle()

    asyncio.run(main())


def test_hello_comes_first_and_in_a_known_version(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (_, live, _):
            silent = TextPeer(live.stub.Session())
            await silent.submit(1, text_request("hello"))
            assert await silent.status() is grpc.StatusCode.INVALID_ARGUMENT
            newer = TextPeer(live.stub.Session())
            await newer.send(hello=common_pb2.Hello(protocol_version=99))
            assert await newer.status() is grpc.StatusCode.FAILED_PRECONDITION

    asyncio.run(main())


def test_truncate_keeps_the_end_of_the_prompt(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, max_context_tokens=32) as (fake, live, peer):
            text = " ".join(str(n) for n in range(60))
            for handle, max_tokens in ((1, None), (2, 12)):
                request = text_request(text)
                request.truncate = True
                if max_tokens:
                    request.options.stop.max_tokens = max_tokens
                await peer.submit(handle, request)
                terminal = await peer.end(handle)
                room = 32 - (max_tokens or 1)
                assert fake.requests[-1].prompt == live.ids(text)[-room:]
                assert terminal.usage.prompt_tokens == room

    asyncio.run(main())


def test_a_prompt_is_cut_and_split_as_the_request_says(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder) as (fake, live, peer):
            text = "<s>The capital of France"
            ids = live.ids(text)
            plain = live.tokenizer.encode_plain(text)
            for handle, (fields, expected) in enumerate(
                [
                    ({"truncation": {"side": 2, "max_tokens": 3}}, ids[:3]),
                    ({"truncation": {"side": 1, "max_tokens": 3}}, [ids[0], *ids[-2:]]),
                    ({"truncation": {"max_tokens": 3}, "split_special_tokens": True}, plain[-3:]),
                    ({"split_special_tokens": True}, plain),
                    ({}, ids),
                ],
                start=1,
            ):
                request = text_request()
                request.MergeFrom(tokenizer_pb2.TextRequest(text=text, **fields))
                await peer.submit(handle, request)
                await peer.end(handle)
                assert fake.requests[-1].prompt == expected

    asyncio.run(main())


def test_a_prompt_that_is_too_long_by_its_size_is_refused_without_being_encoded(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a text and as a conversation; not where the request lets it be cut."""

    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, max_context_tokens=32) as (fake, live, peer):
            tokenizer = live.tokenizer
            longest = tokenizer.least_tokens.longest_bytes
            encoded: list[int] = []
            encode, encode_batch = tokenizer.encode, tokenizer.encode_batch
            monkeypatch.setattr(
                tokenizer, "encode", lambda text, **options: (encoded.append(len(text)), encode(text, **options))[1]
            )
            monkeypatch.setattr(
                tokenizer,
                "encode_batch",
                lambda texts, **options: (encoded.extend(map(len, texts)), encode_batch(texts, **options))[1],
            )
            text = "a b" * longest * 32
            conversation = tokenizer_pb2.TextRequest(conversation={"messages": [{"role": "user", "content": text}]})
            for handle, request in enumerate((text_request(text), conversation), start=1):
                await peer.submit(handle, request)
                error = (await peer.end(handle)).error
                assert isinstance(error, InvalidRequest) and error.reason == "CONTEXT_LENGTH_EXCEEDED"
                assert error.violations[0].field == "input"
                assert "the prompt has at least 9" in error.message and "set truncate" in error.message
            assert encoded == []
            request = text_request(text)
            request.truncate = True
            await peer.submit(3, request)
            assert (await peer.end(3)).reason is FinishReason.LENGTH
            assert encoded == [len(text)] and len(fake.requests) == 1
            await live.until_idle()

    asyncio.run(main())
