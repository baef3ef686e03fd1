"""Reads adapters in a thread beside the steps, and holds those that are read. See `AdapterStore`.

Files, checks and packing take a hundred milliseconds and more, mostly outside of the interpreter's lock; a step is
never waited for and never waits. Knows folders and limits; what an adapter is, the bank knows.
"""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from model_svc.engine.adapters import AdapterOutcome, LoadAdapter
from model_svc.model.adapters import AdapterBank, HostAdapter
from tokenwire.errors import FailedPrecondition, Internal, TokenwireError

log = logging.getLogger(__name__)


class TorchAdapterStore:
    """One bank's. Close it."""

    def __init__(self, bank: AdapterBank, max_bytes: int) -> None:
        """`max_bytes`: largest adapter that may be."""
        self._bank, self._max_bytes = bank, max_bytes
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapter-reader")
        self._reading: dict[str, Future[HostAdapter]] = {}

    @property
    def num_uploads(self) -> int:
        """See `AdapterStore`."""
        return self._bank.num_uploads

    def begin(self, load: LoadAdapter) -> None:
        """See `AdapterStore`."""
        self._reading[load.name] = self._reader.submit(self._read, Path(load.folder))

    @property
    def num_loading(self) -> int:
        """See `AdapterStore`."""
        return len(self._reading)

    @property
    def has_outcomes(self) -> bool:
        """See `AdapterStore`."""
        return any(reading.done() for reading in self._reading.values())

    def take_outcomes(self) -> list[AdapterOutcome]:
        """See `AdapterStore`."""
        done = [name for name, reading in self._reading.items() if reading.done()]
        return [self._outcome(name, self._reading.pop(name)) for name in done]

    def remove(self, name: str) -> None:
        """See `AdapterStore`."""
        self._bank.remove(name)

    def close(self) -> None:
        """Wait for what is being read."""
        self._reader.shutdown(cancel_futures=True)

    def _read(self, folder: Path) -> HostAdapter:
        adapter = self._bank.read(folder, self._max_bytes)
        if adapter.num_bytes > self._max_bytes:
            raise FailedPrecondition(
                f"adapter: it takes {adapter.num_bytes} bytes, more than adapter_memory allows, {self._max_bytes}",
                reason="ADAPTER_TOO_LARGE",
            )
        return adapter

    def _outcome(self, name: str, reading: Future[HostAdapter]) -> AdapterOutcome:
        try:
            adapter = reading.result()
        except TokenwireError as error:
            return AdapterOutcome(name, error=error)
        except Exception as error:
            log.error("an adapter could not be read", exc_info=error)
            message = f"adapter: it could not be read: {type(error).__name__}"
            return AdapterOutcome(name, error=Internal(message, reason="ADAPTER_NOT_READ"))
        self._bank.add(name, adapter)
        return AdapterOutcome(name, num_bytes=adapter.num_bytes)
