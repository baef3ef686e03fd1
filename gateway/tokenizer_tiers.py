"""The tokenizer tiers: which there are, what they serve, and which of them takes the next request.

Discovery, breakers and ejection are those of `tokenwire.routing`. Does not know what becomes of a request.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from gateway.backend import RETRY_AFTER_S, Backend, SubmissionOwner
from gateway.metrics import GatewayMetrics
from gateway.settings import GatewaySettings
from tokenwire.errors import Unavailable
from tokenwire.routing.breaker import Breaker
from tokenwire.routing.discovery import Discovery, Resolve, resolve_all
from tokenwire.routing.ejection import not_on_trial, without_failing
from tokenwire.routing.replica_set import ReplicaSet
from tokenwire.routing.targets import parse_targets
from tokenwire.v1 import common_pb2


class TokenizerTiers:
    """All of them. `start`, then `close`."""

    def __init__(
        self,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        owner: SubmissionOwner,
        changed: Callable[[], None],
        *,
        resolve: Resolve = resolve_all,
    ) -> None:
        """`owner` hears of requests that are given up. `changed` is called when a tier came, went or changed its mind.

        `resolve`: how names become addresses.
        """
        self._settings = settings
        self._metrics = metrics
        self._owner = owner
        self._changed = changed
        self._set: ReplicaSet[Backend] = ReplicaSet(self._make, changed, num_each=settings.sessions_per_target)
        self._discovery = Discovery(
            parse_targets(settings.tokenizer_targets),
            self._set.update,
            interval_s=settings.discovery_interval_s,
            resolve=resolve,
            tls=settings.upstream_tls,
        )

    @property
    def serving(self) -> Sequence[Backend]:
        """Those that are listed now, `sessions_per_target` of each."""
        return self._set.serving

    @property
    def ready(self) -> bool:
        """Whether one with a model behind it can be reached."""
        return any(backend.ready for backend in self.serving)

    def start(self) -> None:
        """Begin connecting to all."""
        self._discovery.start()

    async def close(self) -> None:
        """Cut everything; what is open is reported lost."""
        await self._discovery.close()
        await self._set.close()

    def cards(self) -> dict[str, common_pb2.ModelCard]:
        """What they said last that they serve, by name."""
        return {card.name: card for backend in self.serving if backend.session.stream for card in backend.models}

    @property
    def max_open(self) -> int | None:
        """Most sequences that the connected tier which takes least takes from one session; None: none says."""
        streams = [backend.session.stream for backend in self.serving]
        return min((s.hello.max_requests for s in streams if s is not None and s.hello.max_requests), default=None)

    def show_states(self) -> None:
        """Tell the metrics how each session is."""
        self._metrics.show_sessions(backend.state for backend in self._set.all)

    def missing(self) -> str:
        """What keeps them from answering, for people; empty when one can."""
        if self.ready:
            return ""
        said = [f"{backend.target}: {backend.problem()}" for backend in self.serving]
        found = "; ".join(dict.fromkeys([*said, *filter(None, [self._discovery.problem()])]))
        return f"no tokenizer tier can answer ({found or 'none is known'})"

    def choose(self, avoid: Sequence[Backend] = ()) -> Backend:
        """The ready tier with the least to do, else one that is connected. Raises Unavailable.

        Those to which requests fail are passed over within a limit. Several sessions may lead to one process, which its
        epoch shows: the first of them is used, so that what goes to one process at a time goes in one frame. Another
        session to the process of one to `avoid` is used where there is nothing else.
        """
        connected = [backend for backend in self.serving if backend.connected and backend not in avoid]
        if not connected:
            raise Unavailable(
                self.missing() or "the other tokenizer tiers are down",
                reason="TOKENIZER_TIER_DOWN",
                retry_after_s=RETRY_AFTER_S,
            )
        usable = [backend for backend in connected if backend.serving] or connected
        if avoid:
            tried = {backend.process for backend in avoid}
            usable = [backend for backend in usable if backend.process not in tried] or usable
        candidates = not_on_trial(without_failing(usable, self._settings.max_ejected_share))
        if len(candidates) == 1:
            return candidates[0]
        loads = Counter[tuple[str, int]]()
        for backend in candidates:
            loads[backend.process] += backend.num_open
        return min(candidates, key=lambda backend: loads[backend.process])

    def _make(self, address: str) -> Backend:
        breaker = Breaker(self._settings.breaker_failures, on_open=self._metrics.ejections.inc)
        return Backend(address, self._metrics, self._owner, self._changed, self._settings.upstream_tls, breaker)
