"""The processes of the other ranks, as the leading rank sees them: started, told each step, watched, ended.

A socket joins the leader with each. Whoever of the two ends, however it ends, the other's end of the socket tells: a
follower then ends too, and the leader, which can neither go on without it nor leave what it computes jointly, ends the
engine process; the gRPC process starts another. Knows no model.
"""

import logging
import os
import select
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from model_svc.engine.link import encode
from model_svc.settings import EngineSettings

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 3.0
STATUS_TIMEOUT_S = 2.0
LOST_STATUS = 3
"""Exit status of an engine process that lost a follower."""


@dataclass(frozen=True, slots=True)
class FollowerStart:
    """The first message to a follower."""

    settings: EngineSettings
    rank: int
    size: int
    device: str
    port: int
    """Where the ranks meet."""


class Followers:
    """Ranks 1 and up. `close` ends them; a loss before that ends this process."""

    def __init__(self, settings: EngineSettings, devices: list[str], port: int) -> None:
        """Start one for each device but the first, which is the leader's own."""
        self._closing = False
        self._sockets: list[socket.socket] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank, device in enumerate(devices[1:], start=1):
            ours, theirs = socket.socketpair()
            command = (sys.executable, "-m", "model_svc.runner.follower", str(theirs.fileno()))
            with theirs:
                self._processes.append(subprocess.Popen(command, pass_fds=(theirs.fileno(),)))
            self._sockets.append(ours)
            ours.sendall(encode(FollowerStart(settings, rank, len(devices), device, port)))
        self._watch = threading.Thread(target=self._end_with_them, name="watch-followers", daemon=True)
        self._watch.start()

    @property
    def pids(self) -> list[int]:
        """Their processes, in the order of ranks."""
        return [process.pid for process in self._processes]

    def send(self, message: Any) -> None:
        """Tell all of them; waits while one is behind. Raises OSError when one is gone."""
        data = encode(message)
        for each in self._sockets:
            each.sendall(data)

    def give_way(self) -> None:
        """After a failed step: let the loss of a follower, if that was the cause, end this process with its words."""
        self._watch.join(STATUS_TIMEOUT_S)

    def close(self) -> None:
        """End them and wait until they are gone."""
        self._closing = True
        for each in self._sockets:
            with suppress(OSError):  # the other side may be gone already
                each.shutdown(socket.SHUT_RDWR)  # wakes the watch too, which a close alone would not
        self._watch.join()
        for each in self._sockets:
            each.close()
        for process in self._processes:
            try:
                process.wait(CLOSE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _end_with_them(self) -> None:
        poll = select.poll()
        for each in self._sockets:
            poll.register(each, 0)  # the end of the other side is always reported
        ranks = {each.fileno(): rank for rank, each in enumerate(self._sockets, start=1)}
        lost = [ranks[descriptor] for descriptor, _ in poll.poll()]
        if self._closing:
            return
        for rank in lost:
            process = self._processes[rank - 1]
            try:
                status = str(process.wait(STATUS_TIMEOUT_S))
            except subprocess.TimeoutExpired:
                status = "not known"
            log.error(
                "tensor-parallel rank %d (process %d) was lost (exit status %s); the engine process ends",
                rank, process.pid, status,
            )  # fmt: skip
        os._exit(LOST_STATUS)


def end_with_leader(link: socket.socket) -> None:
    """Start a thread that ends this process, a follower, when the leader's end of `link` is closed."""

    def wait() -> None:
        poll = select.poll()
        poll.register(link, 0)
        poll.poll()
        os._exit(0)

    threading.Thread(target=wait, name="watch-leader", daemon=True).start()
