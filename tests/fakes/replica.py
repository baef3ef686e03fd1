"""A replica as the router sees it, for tests of what decides: set what it says of itself."""

from dataclasses import dataclass, field
from typing import Any

from tokenizer_svc.cache_view import CacheView
from tokenwire.routing.breaker import Breaker


@dataclass(eq=False)
class FakeReplica:
    target: str
    load: float = 0.0
    ready: bool = True
    max_context_tokens: int = 0
    vocab_size: int = 0
    generates: bool = True
    embedding_size: int = 0
    breaker: Breaker = field(default_factory=Breaker)
    cache: CacheView = field(default_factory=CacheView)
    adapters: frozenset[str] = frozenset()
    room: int = 1_000_000
    """Sequences that may be submitted."""
    leases_room: bool = True
    num_reports: int = 0
    """Of demand."""

    def has_room(self, num_requests: int, num_tokens: int) -> bool:
        return num_requests <= self.room

    def report_demand(self) -> None:
        self.num_reports += 1

    def problem(self) -> str:
        return "on fire"

    def submit(self, submission: Any, receivers: Any) -> Any:
        raise AssertionError("what decides submits nothing")

    def embed(self, submission: Any) -> Any:
        raise AssertionError("what decides embeds nothing")


@dataclass
class FakeClock:
    """Seconds that pass when the test says so."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s
