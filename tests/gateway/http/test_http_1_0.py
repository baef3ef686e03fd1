"""A client of HTTP/1.0 is answered as it reads: no chunks, and the connection's end ends the answer."""

import asyncio
import json

import pytest

from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.raw_http import BODY, GOOD, HEAD, check_well, exchange, status_of

OLD = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")


def request(head: bytes, body: bytes, fields: bytes = b"") -> bytes:
    return head + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("fields", [b"", b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n"])
def test_an_answer_of_known_length(fields: bytes) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            answer = await exchange(live, request(OLD, BODY, fields))
            head, _, body = answer.partition(b"\r\n\r\n")
            assert status_of(answer) == 200 and b"connection: close" in head
            assert json.loads(body)["object"] == "chat.completion"
            await check_well(live)

    asyncio.run(main())


def test_a_stream_is_its_events_and_nothing_else() -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "a b c d"}], "stream": True}).encode()

    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            head, _, events = (await exchange(live, request(OLD, body))).partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head and b"connection: close" in head
            lines = events.decode().removesuffix("\n\n").split("\n\n")
            assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
            deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-1]]
            assert "".join(delta.get("content", "") for delta in deltas).split() == ["a", "b", "c", "d"]
            await check_well(live)

    asyncio.run(main())


def test_it_may_not_stand_behind_a_request_that_is_being_answered() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            assert (await exchange(live, GOOD + request(OLD, BODY))).count(b"HTTP/1.1 200") <= 1
            await check_well(live)

    asyncio.run(main())
