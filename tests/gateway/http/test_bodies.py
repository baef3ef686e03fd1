"""Bodies that come late, in part or not at all, by raw sockets: they end clearly, and nothing of them is left."""

import asyncio
import contextlib
import json

import pytest

from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.raw_http import (
    BODY,
    CHUNKED,
    CLOSE,
    HEAD,
    check_well,
    connected,
    dripping,
    error_of,
    exchange,
    status_of,
)


def test_unfinished_bodies_are_bounded_all_together_and_given_back() -> None:
    limits = {"max_body_bytes": 4096, "max_unfinished_bytes": 4096}

    async def main() -> None:
        async with gateway_over_fake(**limits) as (_, live), contextlib.AsyncExitStack() as stack:
            bodies = live.server.http.bodies
            half = HEAD + b"Content-Length: 3000\r\n\r\n" + b" " * 2000
            for number in (1, 2):
                _, writer = await stack.enter_async_context(connected(live))
                writer.write(half)
                await live.until(lambda number=number: bodies.num_bytes == number * 2000)
            answer = await exchange(live, half)
            assert status_of(answer) == 503 and b"retry-after: 1\r\n" in answer
            assert error_of(answer)["code"] == "too_many_bodies"
            assert bodies.num_bytes == 4000, "the one that was refused holds nothing"
            await check_well(live)
            assert bodies.num_bytes == 4000
            await stack.aclose()
            await live.until(lambda: bodies.num_bytes == 0)
            await check_well(live)

    asyncio.run(main())


def test_what_is_left_of_a_body_that_was_answered_holds_no_room() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live), connected(live) as (reader, writer):
            head = HEAD.replace(b"application/json", b"text/plain")
            writer.write(head + b"Content-Length: 100000\r\n\r\n" + b" " * 50_000)
            assert b"415" in await reader.readline()
            await live.until(lambda: live.server.http.bodies.num_bytes == 0)
            writer.write(b" " * 40_000)
            await check_well(live)
            assert live.server.http.bodies.num_bytes == 0

    asyncio.run(main())


def test_a_drain_does_not_wait_for_the_rest_of_a_body() -> None:
    async def main() -> None:
        async with gateway_over_fake(drain_timeout_s=40.0) as (tier, live), contextlib.AsyncExitStack() as stack:
            heads = (HEAD, HEAD.replace(b"/v1/chat/completions", b"/tokenwire.v1.GenerationService/ListModels"))
            codings = (b"Content-Length: 3000\r\n\r\n" + b" " * 2000, CHUNKED + b"\r\n7d0\r\n" + b" " * 2000)
            halves = [await stack.enter_async_context(connected(live)) for _ in range(4)]
            for (_, writer), head, coding in zip(halves, heads * 2, (*codings, *codings[::-1]), strict=True):
                writer.write(head + coding)
            await live.until(lambda: live.server.http.bodies.num_bytes == 8000)
            drain = asyncio.ensure_future(live.server.drain())
            for reader, _ in halves:
                async with asyncio.timeout(20):
                    answer = await reader.read(-1)
                assert status_of(answer) == 503 and b"connection: close" in answer and b"retry-after: 1" in answer
                assert error_of(answer)["code"] == "shutting_down"
            async with asyncio.timeout(20):
                await drain
            assert tier.requests == [] and live.server.http.bodies.num_bytes == 0

    asyncio.run(main())


@pytest.mark.parametrize("size", [b"1001", b"800000", b"f" * 16])
def test_a_chunk_that_says_it_is_too_large_is_not_waited_for(size: bytes) -> None:
    """By its size line alone, in whatever pieces that comes; on each kind of path in its own shape."""

    async def main() -> None:
        async with gateway_over_fake(max_body_bytes=4096) as (tier, live):
            web = HEAD.replace(b"/v1/chat/completions", b"/tokenwire.v1.GenerationService/ListModels")
            for head, error in ((HEAD, b"message_too_large"), (web, b"resource_exhausted")):
                for pieces in ((b"\r\n" + size + b"\r\n",), (b"\r\n1\r\n{\r\n", size, b";a", b"\r\n")):
                    async with connected(live) as (reader, writer), asyncio.timeout(10):
                        writer.write(head + CHUNKED)
                        for piece in pieces:
                            writer.write(piece)
                            await asyncio.sleep(0.02)
                        answer = await reader.readuntil(b"}")
                        assert status_of(answer) in (413, 429) and error in answer, answer
            assert tier.requests == []
            await check_well(live)

    asyncio.run(main())


def test_a_body_in_chunks_is_read_wherever_it_is_cut() -> None:
    extended = b"5;a=b\r\n" + BODY[:5] + b"\r\n%X\r\n" % (len(BODY) - 5) + BODY[5:] + b"\r\n000;c\r\nX: y\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n"

    async def main() -> None:
        async with gateway_over_fake(max_body_bytes=len(BODY)) as (_, live):
            data = (HEAD + CHUNKED + b"\r\n" + extended) * 2
            for cut in range(1, len(data), 5):
                async with connected(live) as (reader, writer), asyncio.timeout(10):
                    writer.write(data[:cut])
                    await asyncio.sleep(0.002)
                    writer.write(data[cut:] + last)
                    answer = await reader.read(-1)
                assert answer.count(b"chat.completion") == 2 and answer.endswith(b'{"status":"ok"}'), (cut, answer)

    asyncio.run(main())


@pytest.mark.parametrize("coding", [b"Content-Length: 1000\r\n\r\n", CHUNKED + b"\r\n3e8\r\n"])
def test_a_slow_body_is_a_408_and_the_connection_closes(coding: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http.guard.LINGER_S", 0.2)

    async def main() -> None:
        async with gateway_over_fake(body_timeout_s=0.1, header_timeout_s=0.2) as (tier, live):
            async with connected(live) as (reader, writer):
                writer.write(HEAD + coding)
                async with asyncio.timeout(5), dripping(writer, b" "):
                    answer = await reader.readuntil(b"}}")
                    with contextlib.suppress(ConnectionResetError):
                        assert await reader.read(-1) == b""
            assert status_of(answer) == 408
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
            assert tier.requests == []
            await check_well(live)

    asyncio.run(main())


def test_the_rest_of_a_body_that_nobody_wants_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.http.guard.LINGER_S", 0.1)

    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            async with connected(live) as (reader, writer):
                writer.write(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
                async with asyncio.timeout(5), dripping(writer, b" "):
                    answer = await reader.readuntil(b"}}")
                    with contextlib.suppress(ConnectionResetError):
                        assert await reader.read(-1) == b""
            assert status_of(answer) == 405
            await check_well(live)

    asyncio.run(main())


def test_a_body_that_comes_whole_behind_its_answer_leaves_the_connection_usable() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            async with connected(live) as (reader, writer), asyncio.timeout(5):
                writer.write(b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nab")
                assert b"405" in await reader.readuntil(b"\r\n\r\n")
                writer.write(b"cd" + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert b'{"status":"ok"}' in await reader.read(-1)

    asyncio.run(main())


def test_what_stands_behind_a_body_is_no_header() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            tail = b"0\r\nX-Request-Id: mine\r\n\r\n"
            head = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\n" + CLOSE
            assert b"x-request-id: mine" in await exchange(live, head + b"X-Request-Id: mine\r\n\r\n")
            assert b"mine" not in await exchange(live, head + CHUNKED + b"\r\n" + tail)

    asyncio.run(main())
