"""The engine seen from the gRPC process: its process is watched, started again when lost, and spoken to once per step.

Knows sequences by id and who waits for each. Does not know the wire of gRPC (see `sessions.py`, `service.py`), nor how
a process is started and messages reach it (see `engine_process.py`).
"""

import asyncio
import itertools
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from model_svc.adapters import Adapters, check_at_start, folder_below
from model_svc.backlog import RETRY_AFTER_S, Backlog
from model_svc.cache_events import CacheEventLog
from model_svc.engine.adapters import LoadAdapter
from model_svc.engine.batch import RunnerInfo
from model_svc.engine.events import Abort, EngineLoad, Inbox, StepResult
from model_svc.engine.sequence import Sequence
from model_svc.engine_process import EngineProcess
from model_svc.metrics import EngineMetrics
from model_svc.settings import EngineSettings
from model_svc.tracing import trace_end
from tokenwire.errors import AlreadyExists, TokenwireError, Unavailable
from tokenwire.requests import CancelReason, FinishReason, Terminal, TokenLogprob, Usage
from tokenwire.tasks import cancel_and_wait
from tokenwire.telemetry.tracing import TraceContext, Tracer

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
LOOKS = 8
"""How often the engine's silence is looked at before it has lasted `engine_timeout_s`."""


class SequenceSink(Protocol):
    """Who waits for sequences. Called on the event loop; `flush` once per step after everything of that step."""

    def on_token(self, handle: int, token_id: int, logprob: TokenLogprob | None) -> None:
        """One more token, with its log-probability when asked for."""

    def on_prompt_logprobs(self, handle: int, logprobs: list[TokenLogprob]) -> None:
        """Log-probabilities of the prompt's next tokens; before the first token."""

    def on_end(self, handle: int, terminal: Terminal) -> None:
        """The terminal event; nothing follows."""

    def flush(self) -> None:
        """A step is complete."""


@dataclass(slots=True)
class Live:
    """An open sequence, who waits for it, and how many tokens they were given."""

    sink: SequenceSink
    handle: int
    sequence: Sequence
    num_outputs: int = 0
    trace: TraceContext | None = None
    """Its span; None: it has none."""


class EngineClient:
    """One engine process. `start`, then `submit` and `abort`; `close` at the end."""

    def __init__(
        self,
        settings: EngineSettings,
        on_state: Callable[[bool], None],
        metrics: EngineMetrics,
        tracer: Tracer | None = None,
    ) -> None:
        """`tracer`: None: nothing is traced."""
        self.settings = settings
        self.backlog = Backlog(settings.max_queued_requests, settings.max_queued_tokens)
        self.cache_events = CacheEventLog()
        self.epoch = 0
        """Changes with every start of the engine process; 0 while there is none."""
        self._info: RunnerInfo | None = None
        self._process: EngineProcess | None = None
        self._on_state = on_state
        self._metrics = metrics
        self._tracer = tracer
        self._live: dict[int, Live] = {}
        self._ids = itertools.count(1)
        self._outbox = Inbox()
        self._num_results = 0
        """Messages that came from engine processes."""
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._paused = self._draining = self._closed = False
        self._was_up = False
        self.adapters = Adapters(settings.max_adapters, self._send_adapter)

    async def start(self) -> RunnerInfo:
        """Start the process and wait until the model is loaded. Raises the engine's refusal, or Unavailable."""
        check_at_start(self.settings.adapters, self.settings.served_name, self.settings.max_adapters)
        process = await EngineProcess.start(self.settings)
        if lost := [outcome.error for outcome in process.adapters if outcome.error is not None]:
            await process.kill()
            raise lost[0]
        self._adopt(process, self.settings.adapters)
        self._tasks.append(asyncio.ensure_future(self._supervise(process)))
        return process.info

    async def close(self) -> None:
        """End open sequences with Unavailable, then the process. A second call has no effect."""
        self._closed, self._info = True, None
        message = "the model tier is shutting down and could not finish this request in time (drain_timeout_s)"
        self._lose(Unavailable(message, reason="SHUTTING_DOWN", retry_after_s=RETRY_AFTER_S))
        await cancel_and_wait(*self._tasks)

    @property
    def info(self) -> RunnerInfo:
        """What is served. Raises Unavailable while the engine is down."""
        if self._closed:
            raise Unavailable("the model tier is shutting down", reason="SHUTTING_DOWN", retry_after_s=RETRY_AFTER_S)
        if self._info is None:
            message = "the engine process was lost and is being restarted" if self._was_up else "the engine is starting"
            raise Unavailable(message, reason="ENGINE_DOWN", retry_after_s=RETRY_AFTER_S)
        return self._info

    @property
    def max_batch_size(self) -> int:
        """Most sequences of one step; 0 while the engine is down."""
        return self._info.max_batch_size if self._info is not None else 0

    @property
    def pid(self) -> int | None:
        """The engine process; None while there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def load(self) -> EngineLoad:
        """How busy the engine is, as it said last."""
        return self.backlog.load

    @property
    def num_open(self) -> int:
        """Sequences without a terminal event yet."""
        return len(self._live)

    @property
    def room(self) -> tuple[int, int]:
        """Sequences and prompt tokens that may still be queued; none while the engine is down."""
        return self.backlog.room if self._info is not None else (0, 0)

    def admit(self, sequences: list[Sequence]) -> None:
        """Raise Unavailable, or Overloaded as `Backlog.admit` does, when the sequences of one request may not come."""
        if self._info is None:
            raise Unavailable("the engine is not running", reason="ENGINE_DOWN", retry_after_s=RETRY_AFTER_S)
        try:
            self.backlog.admit(sequences)
        except TokenwireError as error:
            self._metrics.refused.labels(error.reason).inc()
            raise

    def check_integrity(self) -> None:
        """Raise AssertionError unless what waits and what is open are counted right, and within their bounds."""
        self.backlog.check_integrity(Counter(live.sequence.request for live in self._live.values()))

    def next_id(self) -> int:
        """An id for a new Sequence."""
        return next(self._ids)

    def submit(self, sequence: Sequence, sink: SequenceSink, handle: int, traceparent: str = "") -> None:
        """Send a sequence to the engine with the next message. `sink` gets its tokens and exactly one end.

        `traceparent`: the caller's span.
        """
        live = self._live[sequence.sequence_id] = Live(sink, handle, sequence)
        if self._tracer is not None and (trace := self._tracer.begin(traceparent)).sampled:
            live.trace = trace
        self.backlog.sent(sequence)
        if sequence.adapter:
            self.adapters.opened(sequence.adapter)
            self._metrics.adapter_request(sequence)
        self._outbox.sequences.append(sequence)
        self._wake.set()

    def abort(self, sequence_id: int, reason: CancelReason) -> None:
        """Take a sequence back; its sink still gets the end. Unknown or finished ones are ignored."""
        if sequence_id in self._live:
            self._outbox.aborts.append(Abort(sequence_id, reason))
            self._wake.set()

    def pause(self, paused: bool) -> None:
        """Stop or go on starting new sequences; holds for later engine processes too."""
        self._paused = paused
        self._outbox.pause = paused
        self._wake.set()

    async def load_adapter(self, name: str, path: str) -> None:
        """See `Adapters.load`; `path` is below the setting `adapter_folder`. Raises Unavailable too."""
        if name == self.info.model:
            message = f"name: {name!r} is the model's own: an adapter needs another"
            raise AlreadyExists(message, reason="ADAPTER_EXISTS")
        await self.adapters.load(name, folder_below(self.settings.adapter_folder, path))

    async def unload_adapter(self, name: str) -> None:
        """See `Adapters.unload`. Raises Unavailable too."""
        self.info  # noqa: B018  refuses while the engine is down
        await self.adapters.unload(name)

    def _send_adapter(self, load_or_name: LoadAdapter | str) -> None:
        if isinstance(load_or_name, LoadAdapter):
            self._outbox.adapter_loads.append(load_or_name)
        else:
            self._outbox.adapter_unloads.append(load_or_name)
        self._wake.set()

    def drain(self) -> None:
        """The tier is shutting down: while paused, what has not started ends with Unavailable."""
        self._draining = self._outbox.draining = True
        self._wake.set()

    def _adopt(self, process: EngineProcess, adapters: tuple[tuple[str, str], ...]) -> None:
        self._process, self._info, self.epoch = process, process.info, secrets.randbits(63) | 1
        self._was_up = True
        self.backlog.restart(process.info.num_blocks)
        self._outbox = Inbox()
        if self._paused:
            self.pause(True)
        if self._draining:
            self.drain()
        self.cache_events.restart(self.epoch)
        self.adapters.on_engine(adapters, process.adapters)
        self._on_state(True)

    async def _supervise(self, process: EngineProcess) -> None:
        """Serve the process until it is lost, then start another; for ever."""
        while True:
            try:
                await self._serve(process)
                self._tell_lost()
            finally:
                status = await process.close()  # has no end where it cannot be killed
            log.error("the engine process that was lost has ended (exit status %s)", status)
            adapters = self.adapters.served
            process = await self._restart(replace(self.settings, adapters=adapters))
            self._adopt(process, adapters)
            log.info("the engine process runs again")

    def _tell_lost(self) -> None:
        """End what is open and refuse what comes, until there is another process."""
        log.error("the engine process was lost; %d sequences end", self.num_open)
        self._process, self._info, self.epoch = None, None, 0
        self.cache_events.restart(0)
        self._metrics.engine_lost()
        self._lose(Unavailable("the engine process was lost", reason="ENGINE_LOST", retry_after_s=RETRY_AFTER_S))
        self.adapters.on_engine_lost()
        self._on_state(False)

    async def _restart(self, settings: EngineSettings) -> EngineProcess:
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                return await EngineProcess.start(settings)
            except (TokenwireError, OSError) as error:  # OSError: no process can be made now
                log.error("the engine does not start: %s; next try in %.1f s", error, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _serve(self, process: EngineProcess) -> None:
        """Write what is submitted and deliver what comes, until the link or the engine breaks, or this side's bug."""
        tasks = {asyncio.ensure_future(self._read(process)), asyncio.ensure_future(self._write(process))}
        if self.settings.engine_timeout_s:
            tasks.add(asyncio.ensure_future(self._watch(process)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(*tasks)

    async def _watch(self, process: EngineProcess) -> None:
        """Kill an engine that says nothing for too long; one that has nothing to say is asked after half that time.

        Looks are counted and not seconds, so that no time counts in which this process stood still itself.
        """
        num_silent, num_results = 0, self._num_results
        while num_silent < LOOKS:
            await asyncio.sleep(self.settings.engine_timeout_s / LOOKS)
            num_silent = num_silent + 1 if num_results == self._num_results else 0
            num_results = self._num_results
            if num_silent == LOOKS // 2:
                self._wake.set()  # an empty message makes a step, which is answered
        log.error("the engine process has been silent for %g s and is killed", self.settings.engine_timeout_s)
        await process.kill()

    async def _read(self, process: EngineProcess) -> None:
        try:
            while True:
                result = await process.read()
                self._num_results += 1
                self._deliver(result)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the process is gone

    async def _write(self, process: EngineProcess) -> None:
        """One message in flight; what comes meanwhile goes with the next."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                outbox, self._outbox = self._outbox, Inbox()
                await process.write(outbox)
        except ConnectionError:
            return  # the process is gone

    def _deliver(self, result: StepResult) -> None:
        if self._closed:
            return  # everything has ended
        self.backlog.received(result.load, result.num_received)
        self.cache_events.record(result.stored_hashes, result.removed_hashes)
        touched: set[SequenceSink] = set()
        new = result.new
        for sequence_id, prompt_logprobs in new.prompt_logprobs.items():
            live = self._live[sequence_id]
            live.sink.on_prompt_logprobs(live.handle, prompt_logprobs)
            touched.add(live.sink)
        logprobs = {sequence_id: iter(found) for sequence_id, found in new.logprobs.items()}
        for sequence_id, token_id in zip(new.sequence_ids, new.token_ids, strict=True):
            live = self._live[sequence_id]
            live.sink.on_token(live.handle, token_id, next(logprobs[sequence_id]) if sequence_id in logprobs else None)
            live.num_outputs += 1
            touched.add(live.sink)
        for ended in result.ended:
            live = self._live.pop(ended.sequence_id)
            self.backlog.ended(live.sequence)
            if live.sequence.adapter:
                self.adapters.closed(live.sequence.adapter)
            live.sink.on_end(live.handle, ended.terminal)
            if self._tracer is not None and live.trace is not None:
                trace_end(self._tracer, live.trace, live.sequence, ended.terminal)
            touched.add(live.sink)
        for sink in touched:
            sink.flush()
        for outcome in result.adapters:
            self.adapters.on_outcome(outcome)
        self._metrics.record(result)

    def _lose(self, error: TokenwireError) -> None:
        """End every open sequence with this error."""
        lost, self._live = self._live, {}
        self.backlog.all_ended()
        for live in lost.values():
            if live.sequence.adapter:
                self.adapters.closed(live.sequence.adapter)
            earlier = live.sequence.num_generated_before
            usage = Usage(live.sequence.num_prompt_tokens - earlier, 0, earlier + live.num_outputs)
            terminal = Terminal(FinishReason.ERROR, usage, error=error)
            live.sink.on_end(live.handle, terminal)
            if self._tracer is not None and live.trace is not None:
                trace_end(self._tracer, live.trace, live.sequence, terminal)
        for sink in {live.sink for live in lost.values()}:
            sink.flush()
