"""One run of the engine process, seen from the gRPC process: started, spoken to through a socket, ended.

Knows processes and whole messages. Does not know what the messages say, but for the first ones, nor what becomes of a
process that is lost (see `engine_client.py`).
"""

import asyncio
import logging
import os
import pickle
import socket
import sys
from collections.abc import Mapping
from typing import Any

from model_svc.engine.adapters import AdapterOutcome
from model_svc.engine.batch import RunnerInfo
from model_svc.engine.events import Ready, Refused
from model_svc.engine.link import HEADER, encode
from model_svc.settings import EngineSettings
from tokenwire.errors import Unavailable

log = logging.getLogger(__name__)

SPIN_COUNT = "20000"
"""Turns, some tens of microseconds: as long as most waits within a step."""

CLOSE_TIMEOUT_S = 5.0

ENGINE_MODULE = "model_svc.engine"
"""What Python runs; fault tests put one in its place whose steps go wrong."""


def engine_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the engine process: its compute threads spin briefly before they sleep, unless `environ` says.

    OpenMP's threads wait for each other hundreds of times a step. Left alone they spin for milliseconds, also when what
    they wait for needs the very core they hold; put to sleep at once they cost a wake-up each time. docs/engine.md has
    the numbers. Read when torch is loaded; libgomp's own names.
    """
    if "OMP_WAIT_POLICY" in environ:
        return dict(environ)
    return {"GOMP_SPINCOUNT": SPIN_COUNT, **environ}


class EngineProcess:
    """One run of `python -m model_svc.engine` and the socket to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.pid = process.pid
        self.info: RunnerInfo
        """Set once the engine said Ready."""
        self.adapters: tuple[AdapterOutcome, ...] = ()
        """Likewise: what became of those that the settings name."""

    @classmethod
    async def start(cls, settings: EngineSettings) -> "EngineProcess":
        """Start it and wait for Ready. Raises what it refuses with, or Unavailable when it dies before."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                reader, writer = await asyncio.open_connection(sock=ours)
            except BaseException:
                ours.close()
                raise
            try:
                command = (sys.executable, "-m", ENGINE_MODULE, str(theirs.fileno()))
                process = await _begun(*command, pass_fds=(theirs.fileno(),), env=engine_environ(os.environ))
            except BaseException:
                writer.close()
                raise
        engine = cls(process, reader, writer)
        try:
            await engine.write(settings)
            first = await engine.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            status = await engine.close()  # it is ending, or has: what it ends with is worth waiting for
            message = f"the engine process ended before it was ready (exit status {status}); its log says why"
            raise Unavailable(message, reason="ENGINE_DOWN") from None
        except asyncio.CancelledError:
            await engine.kill()
            raise
        if isinstance(first, Refused):
            await engine.kill()
            raise first.error
        assert isinstance(first, Ready)
        engine.info, engine.adapters = first.info, first.adapters
        return engine

    async def read(self) -> Any:
        """The next message. Raises IncompleteReadError or ConnectionError when the process is gone."""
        (size,) = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        return pickle.loads(await self._reader.readexactly(size))

    async def write(self, message: Any) -> None:
        """Send a message; waits while the engine is behind. Raises ConnectionError when the process is gone."""
        self._writer.write(encode(message))
        await self._writer.drain()

    async def close(self) -> int | None:
        """Close the socket, upon which the process ends; kill it if it does not. Returns its exit status."""
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                return await self._process.wait()
        except TimeoutError:
            log.warning("the engine process did not end within %g s and is killed", CLOSE_TIMEOUT_S)
            return await self.kill()
        except asyncio.CancelledError:
            await self.kill()
            raise

    async def kill(self) -> int:
        """End the process without asking: it has not begun to serve, or does not react. Returns its exit status."""
        self._writer.close()
        if self._process.returncode is None:
            self._process.kill()
        return await self._process.wait()


async def _begun(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """A process; one whose start is cancelled midway is ended and waited for."""
    beginning = asyncio.ensure_future(asyncio.create_subprocess_exec(*command, **options))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        process = await beginning
        process.kill()
        await process.wait()
        raise
