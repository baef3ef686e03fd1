"""The server's side of a client's text Session: its handles, its credits, and one outbox for everything that goes down.

A slow or credit-less client fills its own outbox and nothing else. Does not know the sessions below.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from gateway.generation import Generation
from gateway.metrics import RequestRecord
from gateway.submission import Choice, Direct, Submission
from tokenwire.errors import FieldViolation, Overloaded, TokenwireError, let_go
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.outbox import TextOutbox
from tokenwire.parsed import Parsed
from tokenwire.request_ids import RequestIds
from tokenwire.requests import MAX_CHOICES, CancelReason, FinishReason, Terminal
from tokenwire.sampling import refuse
from tokenwire.session import PROTOCOL_VERSION
from tokenwire.session_server import handles_of
from tokenwire.v1 import common_pb2, tokenizer_pb2
from tokenwire.version import __version__
from tokenwire.wire import CANCEL_FROM_WIRE, context_from_wire


class _Running:
    """One Submit: its record, and how many of its choices are open."""

    def __init__(self, record: RequestRecord, num_choices: int) -> None:
        self.record = record
        self.num_open = num_choices
        self.submission: Submission | None = None


class _HandleSink:
    """Takes one choice's events to its handle in the outbox."""

    __slots__ = ("_handle", "_running", "_session", "burst", "direct")

    def __init__(self, session: "TextServerSession", running: _Running, handle: int) -> None:
        self._session = session
        self._running = running
        self._handle = handle
        self.direct: Direct | None = None
        self.burst: Direct | None = None

    def on_text(
        self,
        text: str,
        num_tokens: int,
        token_ids: Sequence[int],
        logprobs: SequenceLogprobs | None = None,
        parsed: Parsed | None = None,
    ) -> None:
        """New text from below."""
        if self.direct is None and (text or parsed is not None):
            self._running.record.saw_text()
            self.direct = self.burst = partial(self._session.outbox.add_text, self._handle)
        self._session.outbox.add_text(self._handle, text, num_tokens, token_ids, logprobs, parsed)

    def on_finish(self, terminal: Terminal) -> None:
        """The end."""
        self._session.choice_ended(self._handle, self._running, terminal)


class TextServerSession:
    """One client's session."""

    def __init__(self, generation: Generation, epoch: int, on_close: Callable[["TextServerSession"], None]) -> None:
        self.outbox = TextOutbox()
        self._generation = generation
        self._epoch = epoch
        self._on_close = on_close
        self._max_requests = generation.backends.max_open
        self._last_handle = 0
        self._choices: dict[int, tuple[Submission, Choice]] = {}
        """What each open handle stands for below."""
        self._running: set[_Running] = set()
        """Open Submits."""
        self._ids = RequestIds()

    def hello(self) -> tokenizer_pb2.SessionResponse:
        """The first frame down."""
        hello = common_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            peer=f"tokenwire-gateway/{__version__}",
            epoch=self._epoch,
            models=self._generation.backends.models(),
            max_requests=self._max_requests,
        )
        return tokenizer_pb2.SessionResponse(hello=hello)

    def on_frame(self, frame: tokenizer_pb2.SessionRequest) -> None:
        """Take cancels of earlier handles, submits, cancels of those, and credits.

        A handle out of order ends the session; any other fault ends its request alone.
        """
        before = self._last_handle
        self._cancel(cancel for cancel in frame.cancels if cancel.handle <= before)
        for submit in frame.submits:
            self._submit(submit)
        if frame.submits:
            self._cancel(cancel for cancel in frame.cancels if cancel.handle > before)
        for credit in frame.credits:
            self.outbox.grant(credit.handle, credit.tokens)

    def half_close(self) -> None:
        """The client submits nothing more."""
        self.outbox.end()

    def drain(self, reason: str, grace_s: float) -> None:
        """Ask the client to put new Submits on another stream; this one ends when nothing is open any more."""
        self.outbox.drain(reason, round(grace_s * 1000))

    async def next_frame(self) -> tokenizer_pb2.SessionResponse | None:
        """Wait for something to send."""
        frame = await self.outbox.next_frame()
        if frame is not None:
            for finish in frame.finishes:
                self._ids.let_go(finish.handle)
        return frame

    def close(self) -> None:
        """The client is gone: take back what is open."""
        for running in list(self._running):
            if running.submission is not None:
                running.submission.abandon(CancelReason.CLIENT)
            running.record.ended(Terminal(FinishReason.CANCELLED))
            running.record.close()
        self._running.clear()
        self._choices.clear()
        self.outbox.close()
        self._on_close(self)

    def choice_ended(self, handle: int, running: _Running, terminal: Terminal) -> None:
        """One choice has its terminal event."""
        self._choices.pop(handle, None)
        running.record.ended(terminal)
        self.outbox.finish(handle, replace(terminal, gateway_timings=running.record.timings()))
        running.num_open -= 1
        if running.num_open == 0:
            self._running.discard(running)
            running.record.close()

    def _cancel(self, cancels: Iterable[common_pb2.Cancel]) -> None:
        for cancel in cancels:
            self.outbox.discard_text(cancel.handle)
            self._ids.let_go(cancel.handle)
            if (open_choice := self._choices.get(cancel.handle)) is not None:
                submission, choice = open_choice
                submission.cancel(choice, CANCEL_FROM_WIRE.get(cancel.reason, CancelReason.CLIENT))

    def _submit(self, submit: tokenizer_pb2.Submit) -> None:
        num_choices = submit.request.options.num_choices or 1
        credit = submit.initial_credit if submit.HasField("initial_credit") else None
        handles = handles_of(submit.handle, num_choices, self._last_handle)
        if self.outbox.num_undelivered > 2 * self._max_requests:
            message = f"{self.outbox.num_undelivered} terminal events wait to be read: read them before submitting more"
            raise Overloaded(message, reason="READER_TOO_SLOW", retry_after_s=1.0)
        self._last_handle = handles[-1]
        for handle in handles:
            self.outbox.open(handle, credit)
        record = self._generation.record("grpc.session")
        record.num_prompts = 1
        try:
            if num_choices > MAX_CHOICES:
                allowed = f"{num_choices} is not allowed: an integer from 1 to {MAX_CHOICES}"
                refuse([FieldViolation("options.num_choices", allowed)])
            self._start(submit.request, handles, record)
        except TokenwireError as error:
            let_go(error)  # it waits to be read
            record.failed(error)
            for handle in handles:
                self.outbox.finish(handle, Terminal(FinishReason.ERROR, error=error))
            record.close()

    def _start(self, request: tokenizer_pb2.TextRequest, handles: range, record: RequestRecord) -> None:
        """Send one request down. Raises what is wrong with it."""
        context = context_from_wire(request.context)
        record.request_id = context.request_id
        record.asks_for(request.model)
        self._ids.refuse_taken(context.request_id)
        if self.outbox.num_undelivered >= self._max_requests:
            message = f"{self.outbox.num_undelivered} sequences have ended and their text was not read or granted"
            raise Overloaded(message, reason="READER_TOO_SLOW", retry_after_s=1.0)
        caller = self._generation.caller(record, context)
        if caller.context.deadline_s is not None:
            for handle in handles:
                self.outbox.limit(handle, caller.context.deadline_s)
        running = _Running(record, len(handles))
        sinks = [_HandleSink(self, running, handle) for handle in handles]
        submission = self._generation.backends.submit(request, caller.context, sinks, caller.give_up_s)
        running.submission = submission
        self._running.add(running)
        self._ids.take(handles, context.request_id)
        for handle, choice in zip(handles, submission.choices, strict=True):
            self._choices[handle] = (submission, choice)
