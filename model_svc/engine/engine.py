"""The engine loop: schedule → run → update.

Owns the scheduler and the runner. Knows neither processes nor the wire: sequences come in through `add`, each `step`
returns what it made.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from model_svc.engine.adapters import AdapterOutcome, AdapterStore
from model_svc.engine.batch import ModelRunner, OutOfMemory, ScheduledBatch
from model_svc.engine.events import EngineLoad, Inbox, NewTokens, StepResult
from model_svc.engine.limits import Limits
from model_svc.engine.scheduler import Scheduler
from model_svc.engine.sequence import Sequence, SequenceStatus
from model_svc.engine.step_check import StepCheck
from tokenwire.errors import Internal
from tokenwire.invariants import look

log = logging.getLogger(__name__)

MAX_FAILED_STEPS = 3
"""Steps that may fail in a row before the engine gives up on its device."""

ADAPTER_POLL_S = 0.01
"""How often an idle engine looks whether an adapter has been read."""


class Launched(NamedTuple):
    """A step on its way."""

    began_s: float
    """When it began to be scheduled, in `Engine.now_s`."""
    batch: ScheduledBatch
    token: Any
    """What the runner's `collect` needs."""


class Engine:
    """Continuous batching over one runner. Not thread-safe: one loop calls everything.

    With `overlap` a step is launched before the one before it is collected, so that a device never waits for the
    host: the scheduler goes on as if the tokens on their way were there, and a stop seen late costs one discarded row.
    """

    def __init__(
        self,
        runner: ModelRunner,
        limits: Limits,
        *,
        overlap: bool = False,
        check: bool = False,
        adapters: AdapterStore | None = None,
        clock: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`clock` is what deadlines and waiting go by; `now_s` is what steps are timed with.

        `check`: look after every step whether everything adds up, and say in the log where it does not.
        """
        self.runner = runner
        self.adapters = adapters
        self.phases = runner.phases
        self.scheduler = Scheduler(runner.info, limits, clock, runner.draft_model, runner.grammars)
        self.overlap = overlap
        self._check = StepCheck(self.scheduler) if check else None
        self.num_received = 0
        self._in_flight: Launched | None = None
        """What was launched and not collected."""
        self._num_failed_steps = 0
        self._num_replayed = self._num_not_replayed = 0
        self._now_s = now_s
        self._collected_s = 0.0
        """When the last step was."""
        self._outcomes: list[AdapterOutcome] = []
        """Of adapters that were unloaded."""

    @property
    def has_work(self) -> bool:
        """Whether any sequence is open, or its end not reported, or a step not collected."""
        read = self.adapters is not None and self.adapters.has_outcomes
        return read or self.scheduler.has_work or self._in_flight is not None

    def idle_s(self) -> float | None:
        """Seconds until a step would do something, if nothing new comes: 0 now, None never."""
        idle_s = 0.0 if self._in_flight is not None else self.scheduler.idle_s()
        if self.adapters is not None and self.adapters.num_loading:
            return ADAPTER_POLL_S if idle_s is None else min(idle_s, ADAPTER_POLL_S)
        return idle_s

    def take(self, inbox: Inbox) -> None:
        """Take in new sequences, then what is taken back."""
        if inbox.pause is not None:
            self.scheduler.paused = inbox.pause
        self.scheduler.draining |= inbox.draining
        for sequence in inbox.sequences:
            self.add(sequence)
        for abort in inbox.aborts:
            self.scheduler.abort(abort.sequence_id, abort.reason)
        if self.adapters is not None:
            for load in inbox.adapter_loads:
                self.adapters.begin(load)
            for name in inbox.adapter_unloads:
                self.scheduler.forget_adapter(name)
                self.adapters.remove(name)
                self._outcomes.append(AdapterOutcome(name, unloaded=True))

    def add(self, sequence: Sequence) -> None:
        """Take a new sequence in."""
        self.num_received += 1
        if sequence.constraint is not None and self.runner.grammars is not None:
            self.runner.grammars.prepare(sequence)
        self.scheduler.add(sequence)
        if sequence.constraint is not None and self.runner.grammars is None:
            self.scheduler.fail(sequence, Internal("a constrained sequence came to a runner without a vocabulary"))

    def take_adapters(self) -> list[AdapterOutcome]:
        """What became of adapters since the last call; those that were read can be used from now on."""
        outcomes, self._outcomes = self._outcomes, []
        if self.adapters is not None and self.adapters.has_outcomes:
            for outcome in self.adapters.take_outcomes():
                if outcome.error is None:
                    self.scheduler.add_adapter(outcome.name, outcome.num_bytes)
                outcomes.append(outcome)
        return outcomes

    def step(self) -> StepResult:
        """Compute one step. A step that raises ends its own sequences with an error; the third in a row is raised.

        One that the device has no memory for makes nothing, and fewer sequences and tokens share the next.
        """
        started_s = time.perf_counter()
        self.phases.lap("schedule")  # what came has been taken in
        new, outcomes = NewTokens(), self.take_adapters()
        if self._in_flight is not None and not self.scheduler.can_run_ahead:
            new = self._collect(self._in_flight)
            self._in_flight = None
        began_s = self._now_s()
        batch = self.scheduler.schedule()
        self.phases.lap("schedule")
        launched = self._launch(batch, began_s)
        if self._in_flight is not None:
            new = self._collect(self._in_flight)
        if launched is not None and not self.overlap:
            new = self._collect(launched)
            launched = None
        self._in_flight = launched
        stored, removed = self.scheduler.kv.pool.take_changes()
        ended = self.scheduler.take_ended()
        if self._check is not None:
            look(partial(self._check.after, new, ended))
        return StepResult(
            new=new,
            ended=ended,
            load=self.load(),
            num_received=self.num_received,
            stored_hashes=stored,
            removed_hashes=removed,
            num_batch_tokens=batch.num_tokens,
            num_batch_sequences=len(batch.rows),
            step_s=time.perf_counter() - started_s,
            phases_s=tuple(self.phases.seconds.values()),
            adapters=outcomes,
        )

    def load(self) -> EngineLoad:
        """How busy the engine is."""
        load = self.scheduler.load()
        if self._num_replayed or self._num_not_replayed:
            load = load._replace(num_replayed=self._num_replayed, num_not_replayed=self._num_not_replayed)
        return load if self.adapters is None else load._replace(num_adapter_uploads=self.adapters.num_uploads)

    def _launch(self, batch: ScheduledBatch, began_s: float) -> Launched | None:
        """Begin a step. None when there is nothing to compute, or it failed."""
        if not batch.rows:
            return None
        try:
            launched = self.runner.launch(batch)
        except OutOfMemory as error:
            done = self.scheduler.give_way(batch)
            log.warning(
                "out of memory in a step of %d sequences and %d tokens: %s (%s)",
                len(batch.rows), batch.num_tokens, done, error,
            )  # fmt: skip
            return None
        except Exception as error:
            self._fail(batch, error)
            return None
        self.scheduler.launched(batch)
        self.phases.lap("schedule")
        return Launched(began_s, batch, launched)

    def _collect(self, launched: Launched) -> NewTokens:
        """Enter what a step made."""
        try:
            output = self.runner.collect(launched.token)
        except Exception as error:
            self._fail(launched.batch, error)
            return NewTokens()
        self._num_failed_steps = 0
        new = self.scheduler.update(launched.batch, output)
        new.masks = output.masks
        if output.replayed is not None:
            self._num_replayed += output.replayed
            self._num_not_replayed += not output.replayed
        now_s = self._now_s()
        took_s = now_s - max(launched.began_s, self._collected_s)
        self.scheduler.drafting.took(launched.batch, len(new.token_ids), took_s)
        self._collected_s = now_s
        self.phases.lap("publish")
        return new

    def _fail(self, batch: ScheduledBatch, error: Exception) -> None:
        """End a failed step's sequences. Raises the error when too many steps in a row have failed."""
        self._num_failed_steps += 1
        if self._num_failed_steps >= MAX_FAILED_STEPS:
            raise error
        log.error("a step of %d sequences failed; they end with an error", len(batch.rows), exc_info=error)
        failure = Internal(f"the engine step failed: {type(error).__name__}", reason="STEP_FAILED")
        for row in batch.rows:
            if row.sequence.status is not SequenceStatus.FINISHED:
                self.scheduler.fail(row.sequence, failure)
