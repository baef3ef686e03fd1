"""The hybrid admission window: new sequences start together once one has waited long enough or enough of them wait.

Bigger prefill batches for a little latency; off by default. Decodes and preempted sequences never wait for it.
Knows arrival times and counts alone.
"""

from collections.abc import Iterable

from model_svc.engine.sequence import Sequence


class AdmissionWindow:
    """`window_s` 0 and `num_requests` 0: always open. Both set: whichever comes first.

    A count alone holds nobody back while nothing runs: a device that idles for a request that may never come helps no
    one. A time does, up to its end.
    """

    def __init__(self, window_s: float = 0.0, num_requests: int = 0) -> None:
        self.window_s = window_s
        self.num_requests = num_requests
        self._through_id = 0
        """Sequences up to this id may start."""
        self._last_id = 0

    def add(self, sequence_id: int) -> None:
        """A new sequence waits; ids grow."""
        self._last_id = max(self._last_id, sequence_id)

    def update(self, now_s: float, *, num_new: int, oldest_arrival_s: float | None, idle: bool) -> None:
        """Let in what waits when the window opens. `num_new`, `oldest_arrival_s`: of new sequences that wait."""
        waited = self.window_s and oldest_arrival_s is not None and oldest_arrival_s + self.window_s <= now_s
        enough = self.num_requests and num_new >= self.num_requests
        off = not self.window_s and (not self.num_requests or idle)
        if waited or enough or off:
            self._through_id = self._last_id

    def lets_in(self, sequence_id: int) -> bool:
        """Whether a new sequence may start."""
        return sequence_id <= self._through_id

    def lets_any_in(self, sequences: Iterable[Sequence]) -> bool:
        """Whether any of these new sequences may start."""
        return self._through_id == self._last_id or any(self.lets_in(each.sequence_id) for each in sequences)

    def opens_s(self, oldest_arrival_s: float | None) -> float | None:
        """When it opens by time, given when the oldest new sequence arrived; None: not by time."""
        return oldest_arrival_s + self.window_s if self.window_s and oldest_arrival_s is not None else None
