"""What raw sockets may do to the HTTP port: it ends with a clear answer or a closed connection, and nothing is left."""

import asyncio
import contextlib
import json

import pytest

from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.raw_http import (
    BODY,
    CHUNKED,
    CLOSE,
    GOOD,
    HEAD,
    STREAM,
    check_well,
    connected,
    dripping,
    error_of,
    exchange,
    status_of,
)


def test_one_field_that_never_ends_is_refused_at_the_limit_of_heads() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_header_bytes=4096) as (_, live):
            begin = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "
            for first, rest in ((5000, 0), (2000, 3000)):
                async with connected(live) as (reader, writer):
                    writer.write(begin + b"x" * first)
                    if rest:
                        await asyncio.sleep(0.05)
                        writer.write(b"x" * rest)
                    async with asyncio.timeout(5):
                        assert status_of(await reader.readline()) == 431
            async with connected(live) as (reader, writer):
                for piece in (begin, b"x" * 2000, b"x" * 1900, b"\r\n\r\n"):
                    writer.write(piece)
                    await asyncio.sleep(0.02)
                assert status_of(await reader.readline()) == 200
            await check_well(live)

    asyncio.run(main())


REFUSED = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": b"BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "unknown version": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "no version": b"GET /v1/models\r\n\r\n",
    "no version, with fields": b"GET /v1/models\r\nHost: localhost\r\n\r\n",
    "no version, with a body": GOOD.replace(b" HTTP/1.1", b""),
    "HTTP/2 in a line of text": b"GET /v1/models HTTP/2.0\r\nHost: localhost\r\n\r\n",
    "chunks in HTTP/1.0": HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED + b"\r\n0\r\n\r\n",
    "target that is no path": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "target of another protocol": b"GET ftp://localhost/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two hosts beside an address": b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n",
    "address without a host field": b"GET http://localhost/healthz HTTP/1.1\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "space in a name": b"GET / HTTP/1.1\r\nHost: localhost\r\nA b: c\r\n\r\n",
    "space before the colon": b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\nHost: localhost\r\njunk\r\n\r\n",
    "zero byte": b"GET / HTTP/1.1\r\nHost: localhost\r\nA: \x00\r\n\r\n",
    "bare line feed in a value": b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\rc\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n",
    "path that is no ASCII": b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CL and TE": HEAD
    + b"Content-Length: 5\r\n"
    + CHUNKED
    + b"\r\n0\r\n\r\nGET /secret HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TE and CL": HEAD + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY,
    "length is no number": HEAD + b"Content-Length: five\r\n\r\n" + BODY,
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "length with a sign": HEAD + b"Content-Length: +5\r\n\r\n" + BODY,
    "huge length": HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + BODY,
    "unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked is not last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunk size is no number": HEAD + CHUNKED + b"\r\nzz\r\n" + BODY + b"\r\n0\r\n\r\n",
    "chunk size is too large": HEAD + CHUNKED + b"\r\n" + b"f" * 17 + b"\r\n",
    "control character in the path": b"GET /healthz%0A HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tunnel": b"CONNECT x:1 HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "chunk without its end": HEAD + CHUNKED + b"\r\n3\r\nabcdef\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_request_is_a_400_and_the_connection_closes(what: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            answer = await exchange(live, REFUSED[what])
            assert status_of(answer) == 400, answer
            assert answer.count(b"HTTP/1.1 ") == 1, "what stood behind it was not read as a request"
            assert error_of(answer)["type"] == "invalid_request_error"
            assert tier.requests == []
            await check_well(live)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 5000 + b"\r\n", "too_many_headers"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 40_000 + b"\r\n\r\n", "head_too_large"),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", "head_too_large"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 3_000_000, "head_too_large"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"b" * 3_000_000, "head_too_large"),
        (HEAD + CHUNKED + b"\r\n1\r\n{\r\n0\r\n" + b"A: b\r\n" * 5000 + b"\r\n", "too_many_headers"),
        (HEAD + CHUNKED + b"\r\n1\r\n{\r\n0\r\nA: " + b"b" * 40_000 + b"\r\n\r\n", "head_too_large"),
        (HEAD + CHUNKED + b"\r\n1\r\n{\r\n0\r\nA: " + b"b" * 3_000_000, "head_too_large"),
        (HEAD + CHUNKED + b"\r\n1;a=" + b"b" * 3_000_000, "head_too_large"),
        (HEAD + CHUNKED + b"\r\n2;" + b"a" * 33_000 + b"\r\n{}\r\n0\r\n\r\n", "head_too_large"),
        (HEAD + CHUNKED + b"\r\n" + (b"1;" + b"a" * 1000 + b"\r\n \r\n") * 40 + b"0\r\n\r\n", "head_too_large"),
        (HEAD + CHUNKED + b"\r\n" + b"0" * 33_000 + b"2\r\n{}\r\n0\r\n\r\n", "head_too_large"),
        (GOOD + b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"b" * 33_000 + b"\r\n\r\n", "head_too_large"),
        (b"\r\n" * 20_000, "head_too_large"),
    ],
    ids=[
        "thousands of fields",
        "large field",
        "large target",
        "field without an end",
        "name without an end",
        "thousands of fields behind a body",
        "large field behind a body",
        "field without an end behind a body",
        "chunk extension without an end",
        "large chunk extension",
        "many chunk extensions",
        "zeros before a chunk's size",
        "large head behind a request",
        "empty lines without an end",
    ],
)
def test_large_heads_are_refused(data: bytes, reason: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            answer = await exchange(live, data)
            # A client that goes on sending into a closed connection may lose the answer to the reset. Into that to
            # another request nothing is written.
            last = answer[answer.rfind(b"HTTP/1.1 ") :]
            assert not last or status_of(last) == 200 or (status_of(last) == 431 and error_of(last)["code"] == reason)
            labels = {"reason": reason}
            assert live.registry.get_sample_value("tokenwire_gateway_http_refusals_total", labels) == 1
            await check_well(live)

    asyncio.run(main())


def test_a_slow_head_and_a_silent_connection_are_closed() -> None:
    async def main() -> None:
        async with gateway_over_fake(header_timeout_s=0.1) as (_, live):
            assert await exchange(live, b"") == b""
            assert await exchange(live, b"\r\n\r\n") == b""
            answer = await exchange(live, b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b")
            assert status_of(answer) == 408 and error_of(answer)["code"] == "request_timeout"

            async with connected(live) as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\n")
                async with asyncio.timeout(5), dripping(writer, b"A: b\r\n"):
                    assert b" 408 " in await reader.readuntil(b"\r\n"), "bytes that drip in buy no time"
            await check_well(live)

    asyncio.run(main())


@pytest.mark.parametrize("cut", [0, 10, len(HEAD), len(GOOD) - 1])
def test_what_is_cut_short_leaves_nothing(cut: int) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            await exchange(live, GOOD[:cut], half_close=True)
            assert tier.requests == []
            await check_well(live)

    asyncio.run(main())


def test_idle_connections_are_closed_after_their_time() -> None:
    async def main() -> None:
        async with gateway_over_fake(idle_timeout_s=0.1) as (_, live):
            answer = await exchange(live, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert status_of(answer) == 200

    asyncio.run(main())


def test_connections_are_bounded_in_number() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_connections=3) as (_, live):
            await check_well(live)  # httpx keeps this one open
            async with connected(live), connected(live):
                answer = await exchange(live, b"")
                assert status_of(answer) == 503 and b"\r\nretry-after: 1\r\n" in answer
                assert error_of(answer)["code"] == "too_many_connections"
                await check_well(live)
            async with asyncio.timeout(5):
                while True:
                    answer = await exchange(
                        live, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    )
                    if status_of(answer) == 200:
                        break

    asyncio.run(main())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            healthz = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
            answer = await exchange(
                live, GOOD + healthz + GOOD + healthz.replace(b"\r\n\r\n", b"\r\n" + CLOSE + b"\r\n")
            )
            bodies = [piece.partition(b"\r\n\r\n")[2] for piece in answer.split(b"HTTP/1.1 200 OK")[1:]]
            assert [b"chat.completion" in body for body in bodies] == [True, False, True, False]
            assert b'{"status":"ok"}' in bodies[1] and b'{"status":"ok"}' in bodies[3]

    asyncio.run(main())


@pytest.mark.parametrize("behind", [b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000, b"nonsense\r\n\r\n"])
def test_nothing_is_written_into_a_running_answer(behind: bytes) -> None:
    """What is sent behind a request that is being answered is bounded, and may end the connection, and no more."""

    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            body = json.dumps(STREAM).encode()
            async with connected(live) as (reader, writer):
                writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                await tier.until(lambda: tier.num_running == 1)
                async with asyncio.timeout(5):
                    answer = await reader.readuntil(b'"a"')
                    writer.write(behind)
                    with contextlib.suppress(ConnectionResetError):
                        answer += await reader.read(-1)
                assert answer.count(b"HTTP/1.1 ") == 1
            await tier.until(lambda: tier.num_running == 0)
            await check_well(live)

    asyncio.run(main())


JAVA = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQBAAAAAAIAAAAA\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
UPGRADES = {
    "as Java does": HEAD + JAVA + LENGTH + b"\r\n" + BODY,
    "behind the length": HEAD + LENGTH + JAVA + b"\r\n" + BODY,
    "as the last field": HEAD + LENGTH + b"Connection: upgrade\r\nUpgrade: 20\r\n\r\n" + BODY,
    "in capitals": HEAD + JAVA.upper() + LENGTH + b"\r\n" + BODY,
    "in chunks": HEAD + JAVA + CHUNKED + b"\r\n" + CHUNKS,
    "for a socket": HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + LENGTH + b"\r\n" + BODY,
    "in a second request": GOOD + HEAD + JAVA + LENGTH + b"\r\n" + BODY,
}


@pytest.mark.parametrize("what", UPGRADES)
def test_a_request_that_asks_for_another_protocol_is_answered_in_this_one(what: str) -> None:
    """Its body belongs to it, wherever what is read is cut, and what stands behind it is the next request."""

    async def main() -> None:
        data, last = UPGRADES[what], b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n"
        async with gateway_over_fake() as (tier, live):
            for cut in [len(data), *range(1, len(data), 7)]:
                num_asked = len(tier.requests)
                async with connected(live) as (reader, writer), asyncio.timeout(5):
                    writer.write(data[:cut])
                    await asyncio.sleep(0.002)
                    writer.write(data[cut:] + last)
                    answer = await reader.read(-1)
                num_chats = data.count(b"POST ")
                assert answer.count(b"HTTP/1.1 200 OK") == answer.count(b"HTTP/1.1 ") == num_chats + 1, (cut, answer)
                assert answer.count(b"chat.completion") == len(tier.requests) - num_asked == num_chats
                assert answer.endswith(b'{"status":"ok"}')

    asyncio.run(main())
