"""Adapters as the engine sees them: read beside its steps, then there by name; gone when nobody uses them any more.

Knows names and folders; does not know what is in them.
"""

from dataclasses import dataclass
from typing import Protocol

from tokenwire.errors import TokenwireError


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Read an adapter and have it by a name that no other has."""

    name: str
    folder: str


@dataclass(frozen=True, slots=True)
class AdapterOutcome:
    """What became of loading an adapter, or of unloading one."""

    name: str
    unloaded: bool = False
    error: TokenwireError | None = None
    """Why it was not loaded."""
    num_bytes: int = 0
    """What it takes on the device, where it was loaded."""


class AdapterStore(Protocol):
    """The runner's adapters."""

    @property
    def num_uploads(self) -> int:
        """Times that an adapter was brought to the device."""

    def begin(self, load: LoadAdapter) -> None:
        """Begin to read one, beside the steps."""

    @property
    def num_loading(self) -> int:
        """Those whose outcome was not taken yet."""

    @property
    def has_outcomes(self) -> bool:
        """Whether `take_outcomes` would give any."""

    def take_outcomes(self) -> list[AdapterOutcome]:
        """What became of those that are read; the good ones can be used from now on."""

    def remove(self, name: str) -> None:
        """Nobody uses it any more."""

    def close(self) -> None:
        """Wait for what is being read; nothing is begun after."""
