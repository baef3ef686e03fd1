"""Writing around ASGI: what comes in one turn of the event loop is one write, in the order in which it came."""

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.http.connection import MAX_LATER, Batch, Connection
from gateway.http.text_events import TextEvents


class Transport:
    """Keeps what is written; breaks where it is told to."""

    def __init__(self, *, broken: bool = False) -> None:
        self.writes: list[bytes] = []
        self.aborted = False
        self._broken = broken

    def write(self, data: bytes) -> None:
        if self._broken:
            raise RuntimeError("a bug")
        self.writes.append(data)

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.writes.append(b"closed")

    def is_closing(self) -> bool:
        return b"closed" in self.writes

    def get_extra_info(self, name: str) -> None:
        return None

    def resume_reading(self) -> None:
        pass


def connected(batch: Batch, **transport: Any) -> tuple[Connection, Transport]:
    """A connection without a client."""
    config = uvicorn.Config(app=lambda *_: None, log_config=None, lifespan="off")
    connection = Connection(config, ServerState(), {}, batch=batch)
    made = Transport(**transport)
    connection.transport = made  # type: ignore[assignment]
    return connection, made


def test_what_comes_in_one_turn_is_one_write_per_connection() -> None:
    async def main() -> None:
        batch = Batch()
        (one, first), (two, second) = connected(batch), connected(batch)
        for number in range(3):
            one.write_later(b"%d" % number)
        two.write_later(b"x")
        assert not first.writes and not second.writes
        await asyncio.sleep(0)
        assert (first.writes, second.writes) == ([b"012"], [b"x"])
        one.write_later(b"3")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (first.writes, second.writes) == ([b"012", b"3"], [b"x"])

    asyncio.run(main())


def test_nothing_overtakes_what_waits() -> None:
    async def main() -> None:
        connection, transport = connected(Batch())
        connection.write_later(b"first,")
        connection.write_chunk(b"second")
        connection.write_later(b"third")
        connection.flush()
        connection.flush()
        await asyncio.sleep(0)
        assert b"".join(transport.writes) == b"first,6\r\nsecond\r\nthird" and len(transport.writes) == 3

    asyncio.run(main())


def test_events_are_written_at_once_or_together_and_never_overtake() -> None:
    async def main() -> None:
        connection, transport = connected(Batch())
        events = TextEvents(connection, 'data: {"text":', "}\n\n", pytest.fail)
        pieces = [f'data: {{"text":"{letter}"}}\n\n' for letter in "abcd"]
        chunks = [f"{len(piece):x}\r\n{piece}\r\n".encode() for piece in pieces]
        events.write("a", 1)
        assert transport.writes == chunks[:1]
        events.write_later("b", 1)
        events.write_later("c", 1)
        assert transport.writes == chunks[:1]
        events.write("d", 1)
        assert transport.writes == [chunks[0], chunks[1] + chunks[2], chunks[3]]
        await asyncio.sleep(0)
        assert len(transport.writes) == 3

    asyncio.run(main())


def test_much_is_written_at_once() -> None:
    async def main() -> None:
        connection, transport = connected(Batch())
        for number in range(MAX_LATER + 3):
            connection.write_later(b"%d," % number)
        assert len(transport.writes) == 1
        await asyncio.sleep(0)
        assert b"".join(transport.writes) == b"".join(b"%d," % number for number in range(MAX_LATER + 3))
        assert len(transport.writes) == 2

    asyncio.run(main())


def test_a_connection_that_cannot_be_written_to_is_cut_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        batch = Batch()
        (bad, broken), (good, whole) = connected(batch, broken=True), connected(batch)
        bad.write_later(b"x")
        good.write_later(b"y")
        await asyncio.sleep(0)
        assert broken.aborted and not whole.aborted and whole.writes == [b"y"]

    asyncio.run(main())
    assert "could not be written to" in caplog.text


def test_what_is_written_to_a_client_that_has_gone_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        connection, transport = connected(Batch(), broken=True)  # as uvloop's is, once it is closed
        events = TextEvents(connection, 'data: {"text":', "}\n\n", pytest.fail)
        connection.write_later(b"waits")
        connection.connection_lost(ConnectionResetError())
        events.write("a", 1)
        events.write_later("b", 1)
        connection.write_chunk(b"c")
        connection.write_later(b"d")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert connection.transport.is_closing() and not connection.later and not transport.writes

    asyncio.run(main())
    assert "could not be written to" not in caplog.text


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("more_turns", [0, 1])
def test_the_head_of_an_answer_goes_with_its_body(keep_alive: bool, more_turns: int) -> None:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        for _ in range(more_turns):
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"after"})

    async def main() -> None:
        config = uvicorn.Config(app=answer, log_config=None, lifespan="off", server_header=False, date_header=False)
        connection, transport = Connection(config, ServerState(), {}, batch=Batch()), Transport()
        connection.connection_made(transport)  # type: ignore[arg-type]
        wish = b"keep-alive" if keep_alive else b"close"
        connection.data_received(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: " + wish + b"\r\n\r\n")
        for _ in range(3 + more_turns):
            await asyncio.sleep(0)
        whole = b"".join(transport.writes)
        assert whole.startswith(b"HTTP/1.1 200 OK\r\n") and whole.endswith(b"firstafter" + b"closed" * (not keep_alive))
        assert len(transport.writes) == 1 + more_turns + (not keep_alive)
        if connection.timeout_keep_alive_task is not None:
            connection.timeout_keep_alive_task.cancel()

    asyncio.run(main())
