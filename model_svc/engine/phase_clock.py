"""Where the engine process spends its time, phase by phase, summed up since it started.

One clock runs through the whole loop: each lap gives what has passed since the last one to a phase, so that nothing is
counted twice or left out. Knows no phase's work.
"""

import time
from collections.abc import Callable
from typing import Literal

Phase = Literal["schedule", "prepare", "forward", "sample", "wait", "publish"]

PHASES: tuple[Phase, ...] = ("schedule", "prepare", "forward", "sample", "wait", "publish")
"""In the order of a step:

- schedule: taking in what came, choosing rows, giving them blocks;
- prepare: the step's inputs, built and uploaded; with several ranks also telling them;
- forward: the model, up to the logits;
- sample: changing logits, drawing, log-probabilities, and starting their copies to the host;
- wait: until the step's results are on the host;
- publish: reading them, entering tokens, stops and ends, and the message to the gRPC process.
"""


class PhaseClock:
    """Host time of each phase.

    On a GPU forward and sample are what launching takes: the device computes beside the host, and what the host then
    has to wait for it is `wait`. Nothing is synchronised for the sake of these numbers. With overlap a step's wait and
    publish come after the next step's launch; the sums are the same.
    """

    def __init__(self, now_s: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        """Since the start."""
        self._now_s = now_s
        self._since_s = now_s()

    def restart(self) -> None:
        """What has passed since the last lap belongs to no phase: there was nothing to do."""
        self._since_s = self._now_s()

    def lap(self, phase: Phase) -> None:
        """What has passed since the last lap, or restart, was this phase."""
        now_s = self._now_s()
        self.seconds[phase] += now_s - self._since_s
        self._since_s = now_s
