"""Writing around ASGI: what comes in one turn of the event loop is one write, in the order in which it came."""

import asyncio
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.http.connection import MAX_LATER, Batch, Connection


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
