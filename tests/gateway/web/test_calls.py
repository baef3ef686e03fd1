"""Browsers' calls: the gRPC port's own handlers, in every form of Connect and gRPC-Web, against a running gateway."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.identities import Callers
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake, generate_request, live_gateway
from tests.fakes.tokenizer_tier import MODEL, fake_tokenizer_tier
from tests.fakes.web_caller import FORMS, PATH, WebCaller, envelope
from tokenwire.errors import InvalidRequest, MessageTooLarge, NotFound, Overloaded, Unauthenticated, Unsupported
from tokenwire.requests import CancelReason
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import gateway_pb2, tokenizer_pb2

each_form = pytest.mark.parametrize("form", FORMS)


def chat_request(text: str) -> gateway_pb2.ChatRequest:
    request = gateway_pb2.ChatRequest()
    request.conversation.messages.add(role="user", content=text)
    return request


@each_form
def test_a_stream_and_a_chat_are_those_of_grpc(form: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            web = WebCaller(live.http, form)
            asked = generate_request("one two", "drei ä€", context=pb.RequestContext(request_id="mine"))
            result = await web.call("Generate", asked)
            messages = result.or_raise()
            for index, text in enumerate(("one two", "drei ä€")):
                assert "".join(each.delta.text for each in messages if each.index == index) == text
            assert sum(each.HasField("finish") for each in messages) == 2
            assert result.headers["x-request-id"] == "mine" and result.headers["x-accel-buffering"] == "no"
            assert "no-transform" in result.headers["cache-control"]
            (over_grpc,) = [each.finish for each in await live.generate("one two") if each.HasField("finish")]
            (finish,) = [each.finish for each in messages if each.HasField("finish") and each.index == 0]
            assert (finish.reason, finish.usage) == (over_grpc.reason, over_grpc.usage)
            result = await web.call("Chat", chat_request("hi you"), {"x-request-id": "other"})
            assert "".join(each.delta.text for each in result.or_raise()) == "hi you"
            assert result.headers["x-request-id"] == "other" == tier.requests[-1].context.request_id
            await live.until(lambda: live.count("grpc.chat", "ok") == 1)

    asyncio.run(main())


@each_form
def test_unary_calls(form: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            web = WebCaller(live.http, form)
            (models,) = (await web.call("ListModels", tokenizer_pb2.ListModelsRequest())).or_raise()
            assert models == await live.stub.ListModels(tokenizer_pb2.ListModelsRequest())
            assert [card.name for card in models.models] == [MODEL]

    asyncio.run(main())


@each_form
def test_errors_have_the_details_that_they_have_over_grpc(form: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            web = WebCaller(live.http, form)
            bad = await web.call("Generate", generate_request("!bad"))
            assert isinstance(bad.error, InvalidRequest) and not bad.messages
            assert [violation.field for violation in bad.error.violations] == ["options.stop.max_tokens"]
            unknown = await web.call("Generate", generate_request("a", model="ä%\n"))
            assert isinstance(unknown.error, NotFound) and unknown.error.reason == "MODEL_NOT_FOUND"
            broken = await web.call("Generate", generate_request("!break a b"))
            assert "".join(each.delta.text for each in broken.messages) == "a b" and broken.code == "INTERNAL"
            nothing = await web.call("Embed", tokenizer_pb2.EmbedRequest())
            assert isinstance(nothing.error, InvalidRequest)
            assert nothing.http_status == (400 if web.connect else 200)
            for method in ("Session", "StreamDetokenize"):
                refused = await web.call(method, b"")
                assert isinstance(refused.error, Unsupported) and refused.error.reason == "CLIENT_STREAM"

    asyncio.run(main())


@each_form
def test_what_is_refused_for_now_says_when_to_come_back(form: str) -> None:
    async def main() -> None:
        async with gateway_over_fake(max_concurrent_requests=1) as (tier, live):
            web = WebCaller(live.http, form)
            async with web.open("Generate", generate_request("!hold a")) as messages:
                assert (await anext(messages)).delta.text == "a"
                refused = await web.call("Generate", generate_request("a"))
                assert isinstance(refused.error, Overloaded) and refused.error.retry_after_s
                embed = await web.call("Embed", tokenizer_pb2.EmbedRequest(texts=["a"]))
                assert isinstance(embed.error, Overloaded)
                if web.connect:
                    assert embed.http_status == 429 and int(embed.headers["retry-after"]) >= 1
            await tier.until(lambda: not tier.num_running)

    asyncio.run(main())


@each_form
def test_who_goes_away_is_cancelled_below(form: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            web = WebCaller(live.http, form)
            async with web.open("Generate", generate_request("!hold a")) as messages:
                assert (await anext(messages)).delta.text == "a"
                assert tier.num_running == 1
            await tier.until(lambda: not tier.num_running)
            assert tier.cancels == [CancelReason.CLIENT]
            await live.until(lambda: live.count("grpc.generate", "cancelled") == 1)
            assert (await web.call("Generate", generate_request("a"))).or_raise()

    asyncio.run(main())


@each_form
def test_time_that_is_up_ends_a_stream_with_what_there_is(form: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            web = WebCaller(live.http, form)
            result = await web.call("Generate", generate_request("!late a b"), timeout_ms=60_000)
            assert result.or_raise()[-1].finish.reason == pb.FINISH_REASON_DEADLINE
            assert 0 < tier.requests[0].context.timeout_ms < 60_000
            tier.deaf = True  # the gateway itself gives it up
            result = await web.call("Generate", generate_request("!hold a"), timeout_ms=200)
            assert result.or_raise()[-1].finish.reason == pb.FINISH_REASON_DEADLINE
            assert (await web.call("Generate", generate_request("a"), timeout_ms=0)).code == "DEADLINE_EXCEEDED"
            assert (
                await web.call("ListModels", tokenizer_pb2.ListModelsRequest(), timeout_ms=0)
            ).code == "DEADLINE_EXCEEDED"
            tier.deaf = False

    asyncio.run(main())


@each_form
def test_a_slow_reader_gets_everything_and_holds_up_nobody(form: str) -> None:
    async def main() -> None:
        async with gateway_over_fake(max_body_bytes=8 * 2**20) as (_, live):
            web = WebCaller(live.http, form)
            words = " ".join(["word"] * 40_000)
            async with web.open("Generate", generate_request(words)) as messages:
                await anext(messages)
                assert (await web.call("Generate", generate_request("a b"))).or_raise()
                text = "word" + "".join([each.delta.text async for each in messages])
            assert text.startswith("word") and len(text) >= len(words) - 5

    asyncio.run(main())


@each_form
def test_who_is_not_known_has_nothing_read(form: str, tmp_path: Path) -> None:
    """Neither a body that is too large, nor one that is no message, nor one that never comes."""

    async def main() -> None:
        settings = {"identity_file": str(Callers.write(tmp_path / "identities.json").path), "body_timeout_s": 60.0}
        async with gateway_over_fake(max_body_bytes=4096, **settings) as (_, live):
            web = WebCaller(live.http, form)
            for body in (b"a" * 5000, b"\xff"):
                result = await web.call("Generate", body)
                assert isinstance(result.error, Unauthenticated)
            reader, writer = await asyncio.open_connection("127.0.0.1", live.server.http.port)
            kind = web.content_type("Generate")
            head = (
                f"POST {PATH}Generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 99\r\n\r\n"
            )
            writer.write(head.encode())
            async with asyncio.timeout(10):
                answer = await reader.readuntil(b"0\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200") and (b"NO_CREDENTIALS" in answer or not web.connect)
            writer.close()

    asyncio.run(main())


@each_form
def test_a_body_that_does_not_come_is_given_up(form: str) -> None:
    async def main() -> None:
        async with gateway_over_fake(body_timeout_s=0.1) as (_, live):
            web = WebCaller(live.http, form)

            async def slow() -> AsyncIterator[bytes]:
                yield web.body("Generate", generate_request("a"))[:4]
                await asyncio.sleep(1)

            head = dict(web.head("Generate", ()))
            response = await live.http.post(PATH + "Generate", content=slow(), headers=head)
            found = web.read("Generate", response.status_code, response.headers, response.content)
            assert found.code == "DEADLINE_EXCEEDED" and found.error is not None
            assert found.error.reason == "REQUEST_TIMEOUT"

    asyncio.run(main())


@each_form
def test_bodies_have_their_bounds(form: str) -> None:
    async def main() -> None:
        async with gateway_over_fake(max_body_bytes=4096) as (_, live):
            web = WebCaller(live.http, form)
            large = await web.call("Generate", generate_request("a" * 5000))
            assert isinstance(large.error, MessageTooLarge) and large.code == "RESOURCE_EXHAUSTED"
            assert "max_body_bytes" in large.error.message

    asyncio.run(main())


def test_a_drain_waits_for_streams_of_browsers() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier, live_gateway(tier, drain_timeout_s=20.0) as live:
            web = WebCaller(live.http, "connect")
            async with web.open("Generate", generate_request("!step a b")) as messages:
                await tier.until(lambda: tier.num_running)
                tier.step()
                first = await anext(messages)
                draining = asyncio.create_task(live.server.drain())
                await live.until(lambda: live.server.generation.draining)
                await asyncio.sleep(0.05)
                assert not draining.done()
                tier.step()
                rest = [message async for message in messages]
            assert first.delta.text + "".join(each.delta.text for each in rest) == "a b"
            assert rest[-1].finish.reason == pb.FINISH_REASON_STOP_TOKEN
            await draining

    asyncio.run(main())


def test_large_json_is_read_and_written() -> None:
    """Beyond what is read on the event loop itself."""

    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            web = WebCaller(live.http, "connect json")
            prompt = gateway_pb2.Prompt(token_ids=pb.TokenIds(ids=range(60_000)))
            result = await web.call("Generate", gateway_pb2.GenerateRequest(prompts=[prompt]))
            assert result.or_raise() and list(tier.requests[0].token_ids.ids) == list(range(60_000))

    asyncio.run(main())


async def answered(live: LiveGateway, content_type: str, body: bytes, **headers: str) -> dict[str, Any]:
    """The error of a unary call of Connect's."""
    fields = {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    response = await live.http.post(PATH + "Tokenize", content=body, headers=fields)
    assert response.status_code >= 400
    found: dict[str, Any] = response.json()
    return {**found, "status": response.status_code}


def test_plain_json_as_a_person_writes_it() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post(PATH + "ListModels", json={})
            assert response.json()["models"][0]["name"] == MODEL
            error = await answered(live, "application/json", b'{"textz": ["a"]}')
            assert (error["status"], error["code"]) == (400, "invalid_argument") and "textz" in error["message"]
            assert error["details"][0]["debug"]["reason"] == "MALFORMED_MESSAGE"

    asyncio.run(main())


def test_heads_that_are_not_understood_are_refused() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            ask = "application/json", b"{}"
            assert (await answered(live, *ask, connect_protocol_version="2"))["code"] == "invalid_argument"
            assert (await answered(live, *ask, content_encoding="gzip"))["code"] == "unimplemented"
            for bad in ("", "-1", "1.5", "12345678901", "ten"):
                assert (await answered(live, *ask, connect_timeout_ms=bad))["code"] == "invalid_argument"
            web = WebCaller(live.http, "grpc-web")
            for bad in ("", "1", "m", "123456789m", "-1m", "1x"):
                found = await web.call("ListModels", b"", {"grpc-timeout": bad})
                assert found.code == "INVALID_ARGUMENT", bad
            assert (await web.call("ListModels", b"", {"grpc-encoding": "gzip"})).code == "UNIMPLEMENTED"
            for unit in "HMSmun":
                found = await web.call("ListModels", b"", {"grpc-timeout": f"99999999{unit}"})
                assert found.code in ("OK", "DEADLINE_EXCEEDED"), unit

    asyncio.run(main())


@pytest.mark.parametrize("streamed", [False, True])
def test_content_types_and_methods_that_are_not_there(streamed: bool) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            path = PATH + ("Chat" if streamed else "ListModels")
            wrong = "application/proto" if streamed else "application/connect+proto"
            for content_type in (wrong, "application/grpc", "text/plain", "application/grpc-web+thrift", ""):
                headers = {"content-type": content_type} if content_type else {}
                response = await live.http.post(path, content=b"", headers=headers)
                assert response.status_code == 415
                assert "application/grpc-web" in response.headers["accept-post"]
                assert wrong not in response.headers["accept-post"].split(", ")
            for verb in ("GET", "PUT", "OPTIONS"):
                response = await live.http.request(verb, path)
                assert response.status_code == 405 and response.headers["allow"] == "POST"
            unknown = await live.http.post(PATH + "Nothing", json={})
            assert (unknown.status_code, unknown.json()["code"]) == (501, "unimplemented")
            for nowhere in ("/tokenwire.v1.ModelService/Generate", "/grpc.health.v1.Health/Check", "/a/b"):
                assert (await live.http.post(nowhere, json={})).status_code == 404

    asyncio.run(main())


def test_a_bug_is_internal_and_says_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):

            def fail(*_: Any, **__: Any) -> None:
                raise RuntimeError("secret")

            monkeypatch.setattr(live.server.generation, "open", fail)
            result = await WebCaller(live.http, "connect").call("Generate", generate_request("a"))
            assert result.code == "INTERNAL" and result.error is not None and "secret" not in result.error.message

    asyncio.run(main())


def test_pieces_of_a_stream_come_one_by_one() -> None:
    """Each before the next is asked for: nothing is held back until the end."""

    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            for form in FORMS:
                web = WebCaller(live.http, form)
                async with web.open("Generate", generate_request("!step a b c")) as messages:
                    await tier.until(lambda: tier.num_running)
                    for text in ("a", " b", " c"):
                        tier.step()
                        assert (await anext(messages)).delta.text == text

    asyncio.run(main())


def test_several_messages_or_none_are_refused() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            headers = {"content-type": "application/connect+proto"}
            one = envelope(generate_request("a").SerializeToString())
            for body in (b"", one + one):
                response = await live.http.post(PATH + "Generate", content=body, headers=headers)
                error = json.loads(response.content[5:])["error"]
                assert error["code"] == "unimplemented" and "one message" in error["message"]

    asyncio.run(main())
