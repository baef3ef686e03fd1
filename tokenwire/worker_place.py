"""What a worker process knows of the tier it is one of: its number, and how it tells that it listens.

A worker shares its ports with the others, leaves Ctrl-C to its parent, and does not outlive it. Knows nothing of what
the tier does; who starts workers is `workers`' business.
"""

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "TOKENWIRE_WORKER"
"""Number and file descriptor, as `workers` gives them to a child."""
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client keeps the numbers of several processes; it reads this when it is imported."""


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """One worker's place among the others."""

    number: int
    """From 0."""
    status_fd: int
    """A pipe to the parent."""
    metrics_folder: Path
    """Shared by all workers of the tier."""

    def tell_started(self) -> None:
        """Tell the parent that this worker listens."""
        os.write(self.status_fd, b"started")
        os.close(self.status_fd)

    def follow_parent(self) -> None:
        """From now on get SIGTERM when the parent is gone, however it went. Standard input is its pipe."""
        threading.Thread(target=_until_parent_is_gone, name="follow-parent", daemon=True).start()


def place_from(environ: Mapping[str, str]) -> WorkerPlace | None:
    """The place of this process; None where it is the whole tier."""
    if VARIABLE not in environ:
        return None
    number, _, status_fd = environ[VARIABLE].partition(":")
    return WorkerPlace(int(number), int(status_fd), Path(environ[METRICS_VARIABLE]))


def _until_parent_is_gone() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
