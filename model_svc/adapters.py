"""The adapters of this tier as its gRPC process knows them: which can be asked for, which come and go, who uses them.

An adapter that is being unloaded takes nothing new at once and leaves the engine when its last sequence has ended. What
is loaded outlives an engine process: the next one is started with it. Knows names and folders; does not know the wire,
nor what is in an adapter.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from model_svc.adapter_config import CONFIG_NAME, WEIGHTS_NAME
from model_svc.engine.adapters import AdapterOutcome, LoadAdapter
from tokenwire.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from tokenwire.logs import fields
from tokenwire.requests import ADAPTER_NAME_RULE, is_adapter_name

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0


class Adapters:
    """Lives on the event loop. `on_change` is called when `names` has changed."""

    def __init__(self, max_adapters: int, send: Callable[[LoadAdapter | str], None]) -> None:
        """`send`: what tells the engine to load an adapter, or by its name to unload one."""
        self.on_change: Callable[[], None] = lambda: None
        self._max_adapters = max_adapters
        self._send = send
        self._folders: dict[str, str] = {}
        """Of those that can be asked for."""
        self._coming: dict[str, tuple[str, asyncio.Future[None]]] = {}
        """Folder, and who waits, of those that are being loaded."""
        self._going: dict[str, asyncio.Future[None]] = {}
        """Those that are being unloaded."""
        self._num_open: Counter[str] = Counter()
        """Sequences by adapter."""

    @property
    def names(self) -> list[str]:
        """Those that can be asked for."""
        return sorted(self._folders)

    @property
    def served(self) -> tuple[tuple[str, str], ...]:
        """Name and folder of each, for the engine that comes next."""
        return tuple(self._folders.items())

    def check(self, name: str) -> None:
        """Raise NotFound unless `name` can be asked for."""
        if name not in self._folders:
            known = ", ".join(self.names) or "none"
            raise NotFound(f"options.adapter: {name!r:.80} is not loaded; loaded: {known}", reason="ADAPTER_NOT_FOUND")

    async def load(self, name: str, folder: str) -> None:
        """Load the adapter in `folder`. Returns once it can be asked for; a caller that leaves stops nothing.

        Raises InvalidRequest, AlreadyExists, FailedPrecondition, and what reading it raises.
        """
        if not is_adapter_name(name):
            description = f"{name[:80]!r} is not allowed: {ADAPTER_NAME_RULE}"
            raise InvalidRequest.of("name", description)
        for state, there in (
            ("loaded: unload it first", self._folders),
            ("being loaded already", self._coming),
            ("being unloaded: load it once that is done", self._going),
        ):
            if name in there:
                raise AlreadyExists(f"adapter {name!r} is {state}", reason="ADAPTER_EXISTS")
        if len(self._folders) + len(self._coming) + len(self._going) >= self._max_adapters:
            message = f"{self._max_adapters} adapters are loaded and no more may be (max_adapters): unload one first"
            raise FailedPrecondition(message, reason="TOO_MANY_ADAPTERS")
        done = asyncio.get_running_loop().create_future()
        self._coming[name] = (folder, done)
        self._send(LoadAdapter(name, folder))
        await asyncio.shield(done)

    async def unload(self, name: str) -> None:
        """Refuse new requests for it at once, and return once the last one that runs has ended and it is gone.

        A caller that leaves before stops nothing; another call waits for the same. Raises NotFound, and
        FailedPrecondition while it is being loaded.
        """
        if name in self._coming:
            raise FailedPrecondition(f"adapter {name!r} is being loaded: wait for that", reason="ADAPTER_LOADING")
        if name not in self._going:
            self.check(name)
            del self._folders[name]
            self._going[name] = asyncio.get_running_loop().create_future()
            log.info("adapter takes nothing new", extra=fields(adapter=name, open=self._num_open[name]))
            self.on_change()
            if not self._num_open[name]:
                self._send(name)
        await asyncio.shield(self._going[name])

    def opened(self, name: str) -> None:
        """A sequence with this adapter was sent to the engine."""
        self._num_open[name] += 1

    def closed(self, name: str) -> None:
        """One has ended."""
        self._num_open[name] -= 1
        if not self._num_open[name]:
            del self._num_open[name]
            if name in self._going:
                self._send(name)

    def on_outcome(self, outcome: AdapterOutcome) -> None:
        """The engine has loaded an adapter, or not, or unloaded one."""
        if outcome.unloaded:
            log.info("adapter unloaded", extra=fields(adapter=outcome.name))
            settle(self._going.pop(outcome.name), None)
            return
        folder, done = self._coming.pop(outcome.name)
        if outcome.error is None:
            log.info("adapter loaded", extra=fields(adapter=outcome.name, bytes=outcome.num_bytes))
            self._folders[outcome.name] = folder
            self.on_change()
        settle(done, outcome.error)

    def on_engine(self, adapters: Sequence[tuple[str, str]], outcomes: Sequence[AdapterOutcome]) -> None:
        """An engine has started with `adapters`, name and folder of each; what it could not load is gone."""
        found = dict(adapters)
        self._folders = {outcome.name: found[outcome.name] for outcome in outcomes if outcome.error is None}
        for outcome in outcomes:
            if outcome.error is not None:
                log.error("adapter lost", extra=fields(adapter=outcome.name, error=outcome.error.message))
        self.on_change()

    def on_engine_lost(self) -> None:
        """The engine is gone, and with it what was coming or going."""
        coming, self._coming = self._coming, {}
        going, self._going = self._going, {}
        for _, done in coming.values():
            settle(done, Unavailable("the engine process was lost", reason="ENGINE_LOST", retry_after_s=RETRY_AFTER_S))
        for gone in going.values():
            settle(gone, None)


def settle(future: asyncio.Future[None], error: Exception | None) -> None:
    """Tell who waits; who has left is not there to be told."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # looked at: nobody need wait


def check_at_start(adapters: Sequence[tuple[str, str]], model: str, max_adapters: int) -> None:
    """Raise FailedPrecondition for adapters, by name and folder, that could not be told apart or are too many."""
    if len(adapters) > max_adapters:
        message = f"adapters: {len(adapters)} are named, and {max_adapters} may be loaded (max_adapters)"
        raise FailedPrecondition(message, reason="TOO_MANY_ADAPTERS")
    if model in dict(adapters):
        message = f"adapters: {model!r} is the name that the model is served under; call the adapter otherwise"
        raise FailedPrecondition(message, reason="ADAPTER_EXISTS")


def folder_below(root: str, path: str) -> str:
    """The folder that `path`, absolute or relative to `root`, means, links resolved: `root` or below it, its files too.

    Raises FailedPrecondition without a root, PermissionDenied for a path that leads elsewhere.
    """
    if not root:
        raise FailedPrecondition(
            "adapters cannot be loaded while this tier runs: start it with --adapter-folder, below which they are",
            reason="ADAPTER_FOLDER_NOT_SET",
        )
    if not path or "\0" in path:
        description = "a folder with a PEFT adapter is needed"
        raise InvalidRequest.of("path", description)
    allowed = Path(root).resolve()
    found = (allowed / path).resolve()
    for name in ("", CONFIG_NAME, WEIGHTS_NAME):
        if not (found / name).resolve().is_relative_to(allowed):
            what = f"{path!r:.300}, {name}," if name else f"{path!r:.300}"
            raise PermissionDenied(f"path: {what} is not below adapter_folder", reason="ADAPTER_PATH_OUTSIDE")
    return str(found)
