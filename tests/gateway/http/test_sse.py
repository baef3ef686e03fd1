"""How streamed answers are written: straight into connections, merged for slow readers, each ended once."""

import asyncio
import json
import socket
from collections.abc import Callable
from json.encoder import encode_basestring

import pytest

from gateway.http import text_events
from gateway.http.connection import Connection
from gateway.http.openai_chunks import OpenAIChunks
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake
from tokenwire.requests import CancelReason

SMALL = 4096
"""Bytes that the kernel is asked to buffer on either side."""


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections whose server side buffers little in the kernel."""
    made = Connection.connection_made

    def connection_made(self: Connection, transport: asyncio.Transport) -> None:
        made(self, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)

    monkeypatch.setattr(Connection, "connection_made", connection_made)


async def slow_request(live: LiveGateway, prompt: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a stream and read nothing of it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", live.server.http.port))
    reader, writer = await asyncio.open_connection(sock=client, limit=SMALL)
    body = json.dumps({"messages": [{"role": "user", "content": prompt}], "stream": True}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    return reader, writer


def answer_of(raw: bytes) -> tuple[list[str], str]:
    """The texts of a chunked answer's events in order, and how it ended."""
    _, _, rest = raw.partition(b"\r\n\r\n")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    *events, last = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]
    assert last == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"]]
    assert len(reasons) == 1, "exactly one terminal event"
    return [choice["delta"].get("content", "") for choice in choices], reasons[0]


def test_a_slow_reader_gets_everything_in_fewer_events_and_slows_nobody(small_buffers: None) -> None:
    async def main() -> None:
        words = [f"{number:05}{'x' * 995}" for number in range(400)]
        async with gateway_over_fake() as (tier, live):
            reader, writer = await slow_request(live, " ".join(words))
            await live.until(lambda: tier.num_running == 0 and len(tier.requests) == 1)
            body = {"messages": [{"role": "user", "content": "quick answer"}]}
            quick = await asyncio.wait_for(live.http.post("/v1/chat/completions", json=body), 5)
            assert quick.json()["choices"][0]["message"]["content"] == "quick answer"
            raw = await asyncio.wait_for(reader.read(-1), 20)
            writer.close()
            texts, reason = answer_of(raw)
            assert "".join(texts) == " ".join(words) and reason == "stop"
            assert len([text for text in texts if text]) < len(words) / 2
            await live.until_idle()

    asyncio.run(main())


def test_a_slow_reader_that_leaves_is_taken_back_below(small_buffers: None) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            words = ["!step", *(f"{number:05}{'x' * 995}" for number in range(400))]
            _, writer = await slow_request(live, " ".join(words))
            await tier.until(lambda: tier.num_running == 1)
            for _ in range(300):
                tier.step()
                await asyncio.sleep(0.001)
            writer.transport.abort()
            await tier.until(lambda: tier.cancels == [CancelReason.CLIENT])
            await live.until_idle()
            await live.until(lambda: live.count("http.chat", "cancelled") == 1)

    asyncio.run(main())


def break_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    render = OpenAIChunks.render

    def with_a_bug(self: OpenAIChunks, events):
        if any("boom" in event.text for event in events):
            raise ZeroDivisionError
        return render(self, events)

    monkeypatch.setattr(OpenAIChunks, "render", with_a_bug)


def break_text_events(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_bug(text: str) -> str:
        if "boom" in text:
            raise ZeroDivisionError
        return encode_basestring(text)

    monkeypatch.setattr(text_events, "encode_basestring", with_a_bug)


@pytest.mark.parametrize(
    ("break_it", "text"), [(break_rendering, "boom b c"), (break_text_events, "a boom c")], ids=["first", "later"]
)
def test_a_bug_with_one_answer_ends_that_answer_alone(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None], text: str
) -> None:
    break_it(monkeypatch)

    async def main() -> None:
        async with gateway_over_fake() as (tier, live):

            async def ask(prompt: str) -> str:
                body = {"messages": [{"role": "user", "content": f"!step {prompt}"}], "stream": True}
                try:
                    return (await live.http.post("/v1/chat/completions", json=body)).text
                except Exception as error:
                    return type(error).__name__

            asked = [asyncio.ensure_future(ask(prompt)) for prompt in ("a b c", text, "d e f")]
            await tier.until(lambda: tier.num_running == 3)
            while not all(each.done() for each in asked):
                tier.step()
                await asyncio.sleep(0.005)
            first, broken, last = [each.result() for each in asked]
            assert first.endswith("data: [DONE]\n\n") and last.endswith("data: [DONE]\n\n")
            assert "[DONE]" not in broken
            await live.until_idle()

    asyncio.run(main())


def test_one_connection_serves_one_answer_after_the_other() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            for number in range(5):
                body = {"messages": [{"role": "user", "content": f"a {number}"}], "stream": True, "n": 2}
                response = await live.http.post("/v1/chat/completions", json=body)
                assert response.text.count(f'" {number}"') == 2 and response.text.endswith("data: [DONE]\n\n")
            await live.until_idle()
            assert live.count("http.chat", "ok") == 5

    asyncio.run(main())


def test_a_silent_answer_gets_comments_and_an_error_then_comes_in_the_stream() -> None:
    async def main() -> None:
        async with gateway_over_fake(stream_keep_alive_s=0.02) as (tier, live):
            body = {"messages": [{"role": "user", "content": "!hang"}], "stream": True}
            async with live.http.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                lines = response.aiter_lines()
                for _ in range(3):
                    assert await anext(lines) == ": keep-alive" and await anext(lines) == ""
                await tier.kill()
                rest = [line async for line in lines if line and not line.startswith(":")]
            (event,) = rest
            assert json.loads(event.removeprefix("data: "))["error"]["code"] == "tokenizer_tier_lost"

    asyncio.run(main())


def test_comments_stand_between_texts_and_change_nothing_in_them() -> None:
    async def main() -> None:
        async with gateway_over_fake(stream_keep_alive_s=0.01) as (tier, live):
            body = {"messages": [{"role": "user", "content": "!step a b c"}], "stream": True}
            text, comments = "", 0
            async with live.http.stream("POST", "/v1/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line == ": keep-alive":
                        comments += 1
                        if comments % 2 == 0:
                            tier.step()
                    elif line.startswith("data: {"):
                        text += json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")
            assert text == "a b c" and comments >= 6
            await live.until_idle()

    asyncio.run(main())


def test_without_keep_alives_nothing_is_written_into_the_silence() -> None:
    async def main() -> None:
        async with gateway_over_fake(stream_keep_alive_s=0.0) as (tier, live):
            body = {"messages": [{"role": "user", "content": "!step a b"}], "stream": True}
            asked = asyncio.ensure_future(live.http.post("/v1/chat/completions", json=body))
            await tier.until(lambda: tier.num_running == 1)
            await asyncio.sleep(0.05)
            while not asked.done():
                tier.step()
                await asyncio.sleep(0.002)
            assert ": keep-alive" not in asked.result().text

    asyncio.run(main())


def test_tokens_of_one_frame_are_events_of_their_own() -> None:
    async def main() -> None:
        words = [f"{number:05}" for number in range(400)]
        async with gateway_over_fake() as (_, live):
            body = {"messages": [{"role": "user", "content": " ".join(words)}], "stream": True}
            raw = (await live.http.post("/v1/chat/completions", json=body)).text
            events = [json.loads(line[6:]) for line in raw.split("\n\n") if line.startswith("data: {")]
            texts = [event["choices"][0]["delta"].get("content", "") for event in events]
            assert "".join(texts) == " ".join(words)
            assert len([text for text in texts if text]) > len(words) / 2

    asyncio.run(main())
