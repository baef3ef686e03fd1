"""Whether gRPC can be used in this process: not in the child of one that was forked while gRPC was at work.

gRPC's threads do not come along, and what they held stays held: calls of such a child hang or end it by a signal.
grpc.aio is at work from its first channel on, for good; otherwise gRPC is while a call runs, or always where its own
support of forks is off. Makes no calls.
"""

import gc
import os
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakSet

from tokenwire.errors import FailedPrecondition

C = TypeVar("C")

OFF = ("0", "f", "false", "n", "no")
"""Values of the variable that turns off what gRPC itself does for forks; then none of its channels survives one."""


class _Process:
    """What is known of this process. Sets, not locks: a lock could be held when the process is forked."""

    def __init__(self) -> None:
        self.at_work_for_good = False
        self.aio_channels: WeakSet[object] = WeakSet()
        self.calls: set[object] = set()
        self.grpc_is_lost = False
        self.kept: list[object] = []
        self.collects = False

    def before_fork(self) -> None:
        """No garbage is collected on the way: what grpc.aio left would wait for its thread in the child."""
        self.collects = self.at_work_for_good and gc.isenabled()
        if self.collects:
            gc.disable()

    def after_fork(self) -> None:
        """In the parent, and last in the child."""
        if self.collects:
            gc.enable()

    def forked(self) -> None:
        """In the child: what it has of grpc.aio stays as it is, for the end of it waits or crashes."""
        if self.at_work_for_good:
            self.kept += self.aio_channels
            gc.freeze()
        self.grpc_is_lost = self.grpc_is_lost or self.at_work_for_good or bool(self.calls)
        self.after_fork()


_process = _Process()
os.register_at_fork(before=_process.before_fork, after_in_parent=_process.after_fork, after_in_child=_process.forked)


def grpc_is_lost() -> bool:
    """Whether nothing of gRPC may be touched here any more, not even to end it."""
    return _process.grpc_is_lost


def refuse_lost_grpc() -> None:
    """Raise FailedPrecondition where gRPC is lost."""
    if _process.grpc_is_lost:
        raise FailedPrecondition(
            "this process was forked from one in which gRPC was at work, and gRPC does not survive that: fork before"
            " the first session or AsyncClient and while no call runs, or start processes by spawn or forkserver",
            reason="FORKED",
        )


def grpc_begins() -> None:
    """A channel for ordinary code will be made. Raises FailedPrecondition."""
    refuse_lost_grpc()
    if os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in OFF:
        _process.at_work_for_good = True


def aio_begins() -> None:
    """grpc.aio will be at work. Raises FailedPrecondition."""
    refuse_lost_grpc()
    _process.at_work_for_good = True


def kept_in_forks(channel: C) -> C:
    """The same channel of grpc.aio, which a forked process keeps to its end."""
    _process.aio_channels.add(channel)
    return channel


def call_begins() -> Callable[[], None]:
    """A call of ordinary code begins; what is returned is to be called at its end. Raises FailedPrecondition."""
    refuse_lost_grpc()
    call = object()
    _process.calls.add(call)
    return lambda: _process.calls.discard(call)
