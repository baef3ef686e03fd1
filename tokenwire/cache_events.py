"""What a numbered event says of a model tier's prefix cache: one shape for who sends them and who follows. No wire."""

from dataclasses import dataclass
from enum import Enum


class CacheChange(Enum):
    """What an event says of its hashes; the names are those of the wire."""

    SNAPSHOT = "snapshot"
    STORED = "stored"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """One event. A snapshot has the number of the last event that is in it."""

    epoch: int
    number: int
    change: CacheChange
    hashes: tuple[int, ...]
    continues: bool = False
    """A snapshot goes on in the next event, under the same number."""
