"""The replicas that there are now: made when discovery finds them, let go when it no longer does.

One that is let go gets nothing new and runs out: its connection is closed when its last sequence has ended. When it is
found again before that, it goes on as if nothing had been. Does not know where addresses come from, nor the wire.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from tokenwire.errors import TokenwireError
from tokenwire.logs import fields

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.05
"""How often a replica that runs out is looked at."""


class OwnedReplica(Protocol):
    """A replica with a connection to look after."""

    target: str
    """Its address."""
    leaving: bool
    """No longer wanted: it is not ready, and runs out."""

    @property
    def num_open(self) -> int:
        """Sequences that have not ended."""

    def start(self) -> None:
        """Begin connecting in the background."""

    async def close(self) -> None:
        """Cut the connection; what is open is reported lost."""


R = TypeVar("R", bound=OwnedReplica)

Place = tuple[str, int]
"""An address, and which of the replicas there."""


class ReplicaSet(Generic[R]):
    """Owns the replicas. `update` as often as they change, `close` once."""

    def __init__(self, make: Callable[[str], R], on_change: Callable[[], None], *, num_each: int = 1) -> None:
        """`make` makes the replica of an address. `on_change` is called when `serving` has changed.

        `num_each`: replicas to have at each address, where several processes may answer.
        """
        self.serving: tuple[R, ...] = ()
        """Those that are wanted, in the order of the last update: one of each address, then the second of each."""
        self._make = make
        self._on_change = on_change
        self._num_each = num_each
        self._wanted: dict[Place, R] = {}
        self._leaving: dict[Place, R] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def all(self) -> tuple[R, ...]:
        """Those that are wanted, and those that run out."""
        return (*self.serving, *self._leaving.values())

    def update(self, addresses: Sequence[str]) -> None:
        """These are the replicas now, each address once. Raises what `make` raises, and has changed nothing then."""
        before = dict(self._wanted)
        places = [(address, number) for number in range(self._num_each) for address in addresses]
        made = self._make_all(place for place in places if place not in before and place not in self._leaving)
        self._wanted = {place: before.pop(place, None) or self._enter(place, made) for place in places}
        self.serving = tuple(self._wanted.values())
        for place, replica in before.items():
            self._leave(place, replica)
        self._on_change()

    async def close(self) -> None:
        """Cut every connection; what is open is reported lost."""
        replicas = self.all
        self.serving, self._wanted, self._leaving = (), {}, {}  # so that those that run out are no longer waited for
        await asyncio.gather(*(replica.close() for replica in replicas), *self._tasks)

    def _make_all(self, places: Iterable[Place]) -> dict[Place, R]:
        made: dict[Place, R] = {}
        try:
            for place in places:
                made[place] = self._make(place[0])
        except TokenwireError:
            for replica in made.values():
                self._spawn(replica.close())
            raise
        return made

    def _enter(self, place: Place, made: Mapping[Place, R]) -> R:
        """One that runs out, else the one that was made."""
        replica = self._leaving.pop(place, None)
        if replica is None:
            replica = made[place]
            replica.start()
            log.info("tier below added", extra=fields(target=place[0]))
        replica.leaving = False
        return replica

    def _leave(self, place: Place, replica: R) -> None:
        replica.leaving = True
        self._leaving[place] = replica
        log.info("tier below removed", extra=fields(target=place[0], num_open=replica.num_open))
        self._spawn(self._run_out(place, replica))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_out(self, place: Place, replica: R) -> None:
        """Close it once nothing is open, unless it is wanted again."""
        while replica.num_open and self._runs_out(place, replica):
            await asyncio.sleep(LOOK_AGAIN_S)
        if self._runs_out(place, replica):
            del self._leaving[place]
            await replica.close()

    def _runs_out(self, place: Place, replica: R) -> bool:
        return self._leaving.get(place) is replica
