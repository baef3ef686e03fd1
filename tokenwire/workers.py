"""A tier in several processes that share its ports: starts them, starts again what dies, passes on signals.

The kernel spreads connections over the workers (SO_REUSEPORT); this process holds the ports without listening, answers
for the metrics of all, and serves nothing else. Knows nothing of what the tier does.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from tokenwire.addresses import is_free, join_host_port
from tokenwire.errors import FailedPrecondition
from tokenwire.logs import fields
from tokenwire.server import refuse_public_without_auth, until_signal
from tokenwire.settings import WorkerSettings
from tokenwire.tasks import cancel_and_wait
from tokenwire.telemetry import merged_registry, serve_metrics
from tokenwire.worker_place import METRICS_VARIABLE, VARIABLE

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
SETTLED_S = 60.0
"""A worker that ran so long begins again with the shortest pause."""
CONNECTION_AGE_S = 300
"""After which connections are renewed where nothing else is set: a worker that was started again gets its share so."""
KILL_AFTER_S = 5.0
"""How much longer than its drain limit a worker may take before it is killed."""


class Worker:
    """One place among the workers, filled again whenever its process ends."""

    def __init__(self, number: int, command: Sequence[str], metrics_folder: Path) -> None:
        self.number = number
        self._command = command
        self._metrics_folder = metrics_folder
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()

    async def keep_running(self, ever_started: asyncio.Event) -> int:
        """Run until told to stop, and return 0; or the status of a process that ended before any worker listened."""
        pause_s = FIRST_PAUSE_S
        while True:
            began_s = time.monotonic()
            status, pid = await self._run_once(ever_started)
            mark_process_dead(pid, str(self._metrics_folder))  # type: ignore[no-untyped-call]
            if self._stopping.is_set():
                return 0
            if not ever_started.is_set():
                return status if status > 0 else 1
            if time.monotonic() - began_s > SETTLED_S:
                pause_s = FIRST_PAUSE_S
            extra = fields(worker=self.number, pid=pid, status=status, pause_s=pause_s)
            log.error("a worker ended and is started again; the others go on", extra=extra)
            try:
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
                return 0
            except TimeoutError:
                pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send the process this signal, and start none again."""
        self._stopping.set()
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def _run_once(self, ever_started: asyncio.Event) -> tuple[int, int]:
        """One process from its start to its end; its status and id."""
        loop = asyncio.get_running_loop()
        read_fd, write_fd = os.pipe()

        def on_status() -> None:
            if os.read(read_fd, 64):
                ever_started.set()
            else:
                loop.remove_reader(read_fd)

        loop.add_reader(read_fd, on_status)
        try:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=asyncio.subprocess.PIPE,
                    pass_fds=(write_fd,),
                    env={
                        **os.environ,
                        VARIABLE: f"{self.number}:{write_fd}",
                        METRICS_VARIABLE: str(self._metrics_folder),
                    },
                )
            finally:
                os.close(write_fd)
            if self._stopping.is_set():  # told so while it was being started
                self._process.send_signal(signal.SIGTERM)
            return await self._process.wait(), self._process.pid
        finally:
            loop.remove_reader(read_fd)
            os.close(read_fd)


async def serve_workers(module: str, settings: WorkerSettings, port_names: Sequence[str]) -> int:
    """Serve with `settings.workers` processes of `python -m module` until SIGTERM or SIGINT; returns the exit status.

    `port_names`: the settings that are ports to share. Each worker is given this process's own arguments, and the ports
    that were found for 0. Raises FailedPrecondition for a port that is taken.
    """
    signalled = asyncio.create_task(until_signal())
    await asyncio.sleep(0)  # from here on a signal is answered
    refuse_public_without_auth(settings)
    with ExitStack() as held:
        flags: list[str] = []
        for name in port_names:
            reserved = held.enter_context(reserve(settings.host, getattr(settings, name), name))
            flags += [f"--{name.replace('_', '-')}", str(reserved.getsockname()[1])]
        if not settings.max_connection_age_s:
            flags += ["--max-connection-age-s", str(CONNECTION_AGE_S)]
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="tokenwire-metrics-")))
        serve_metrics(
            settings.host,
            settings.metrics_port,
            merged_registry(folder),
            settings.tls if settings.metrics_tls else None,
        )
        command = [sys.executable, "-m", module, *sys.argv[1:], *flags, "--metrics-port", "0"]
        workers = [Worker(number, command, folder) for number in range(settings.workers)]
        log.info("starting workers", extra=fields(workers=len(workers), ports=" ".join(flags)))
        return await _until_ended(workers, signalled, settings.drain_timeout_s + KILL_AFTER_S)


async def _until_ended(workers: Sequence[Worker], signalled: asyncio.Task[str], limit_s: float) -> int:
    ever_started = asyncio.Event()
    tasks = [asyncio.create_task(worker.keep_running(ever_started)) for worker in workers]
    try:
        await asyncio.wait([signalled, *tasks], return_when=asyncio.FIRST_COMPLETED)
        if signalled.done():
            log.info("draining", extra=fields(signal=signalled.result(), workers=len(workers)))
        for worker in workers:
            worker.stop()
        _, late = await asyncio.wait(tasks, timeout=limit_s)
        if late:
            log.error("workers did not drain in time and are killed", extra=fields(workers=len(late)))
            for worker in workers:
                worker.stop(signal.SIGKILL)
            await asyncio.wait(tasks)
    finally:
        for worker in workers:
            worker.stop(signal.SIGKILL)
        await cancel_and_wait(signalled, *tasks)
    log.info("stopped")
    return max(task.result() for task in tasks)


def reserve(host: str, port: int, name: str) -> socket.socket:
    """Hold a port for the workers without listening; 0 takes a free one. Raises FailedPrecondition. Close it."""
    flag = "--" + name.replace("_", "-")
    refusal = FailedPrecondition(
        f"cannot listen on {join_host_port(host, port)}: the port is in use or the address is not of this machine; "
        f"give another with {flag} or --host",
        reason="PORT_IN_USE",
    )
    if not is_free(port, host):  # another tier's workers would share theirs with ours
        raise refusal
    try:
        return _bound(host, port, socket.SO_REUSEPORT)
    except OSError:
        pass  # connections of an earlier run may still be closing
    try:
        return _bound(host, port, socket.SO_REUSEPORT, socket.SO_REUSEADDR)
    except OSError as error:
        raise refusal from error


def _bound(host: str, port: int, *options: int) -> socket.socket:
    """A socket that does not listen. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        for option in options:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
