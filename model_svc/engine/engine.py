"""The engine loop: schedule → run → update.

Owns the scheduler and the runner. Knows neither processes nor the wire: sequences come in through `add`, each `step`
returns what it made.
"""

import logging
import time

from model_svc.engine.batch import ModelRunner, OutOfMemory, ScheduledBatch
from model_svc.engine.events import Inbox, NewTokens, StepResult
from model_svc.engine.scheduler import Limits, Scheduler
from model_svc.engine.sequence import Sequence
from tokenwire.errors import Internal

log = logging.getLogger(__name__)

MAX_FAILED_STEPS = 3
"""Steps that may fail in a row before the engine gives up on its device."""


class Engine:
    """Continuous batching over one runner. Not thread-safe: one loop calls everything."""

    def __init__(self, runner: ModelRunner, limits: Limits) -> None:
        self.runner = runner
        self.scheduler = Scheduler(runner.info, limits)
        self.num_received = 0
        self._num_failed_steps = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence is open, or its end not reported."""
        return self.scheduler.has_work

    def idle_s(self) -> float | None:
        """Seconds until a step would do something, if nothing new comes: 0 now, None never."""
        return self.scheduler.idle_s()

    def take(self, inbox: Inbox) -> None:
        """Take in new sequences, then what is taken back."""
        if inbox.pause is not None:
            self.scheduler.paused = inbox.pause
        for sequence in inbox.sequences:
            self.add(sequence)
        for abort in inbox.aborts:
            self.scheduler.abort(abort.sequence_id, abort.reason)

    def add(self, sequence: Sequence) -> None:
        """Take a new sequence in."""
        self.num_received += 1
        self.scheduler.add(sequence)

    def step(self) -> StepResult:
        """Compute one step. A step that raises ends its own sequences with an error; the third in a row is raised.

        One that the device has no memory for makes nothing, and fewer sequences and tokens share the next.
        """
        started_s = time.perf_counter()
        batch = self.scheduler.schedule()
        new = self._run(batch) if batch.rows else NewTokens()
        stored, removed = self.scheduler.kv.pool.take_changes()
        return StepResult(
            new=new,
            ended=self.scheduler.take_ended(),
            load=self.scheduler.load(),
            num_received=self.num_received,
            stored_hashes=stored,
            removed_hashes=removed,
            num_batch_tokens=batch.num_tokens,
            num_batch_sequences=len(batch.rows),
            step_s=time.perf_counter() - started_s,
        )

    def _run(self, batch: ScheduledBatch) -> NewTokens:
        try:
            output = self.runner.run(batch)
        except OutOfMemory as error:
            num_preempted = self.scheduler.give_way(batch)
            log.warning(
                "out of memory in a step of %d sequences and %d tokens: %d preempted, steps of %d tokens from now (%s)",
                len(batch.rows), batch.num_tokens, num_preempted, self.scheduler.budget.max_tokens, error,
            )  # fmt: skip
            return NewTokens()
        except Exception as error:
            self._num_failed_steps += 1
            if self._num_failed_steps >= MAX_FAILED_STEPS:
                raise
            log.exception("a step of %d sequences failed; they end with an error", len(batch.rows))
            failure = Internal(f"the engine step failed: {type(error).__name__}", reason="STEP_FAILED")
            for row in batch.rows:
                self.scheduler.fail(row.sequence, failure)
            return NewTokens()
        self._num_failed_steps = 0
        return self.scheduler.update(batch, output)
