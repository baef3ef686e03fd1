"""The server's side of a token Session: many requests on one stream, one columnar frame down per engine step."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from model_svc.admission import TokenRequest
from model_svc.credits import TTL_S, Lessor
from model_svc.engine.terminal import FINISH_OF_CANCEL
from model_svc.engine_client import EngineClient
from model_svc.model_card import TierState
from model_svc.token_frame import TokenFrames
from tokenwire.errors import Internal, Overloaded, TokenwireError
from tokenwire.logs import fields
from tokenwire.request_ids import RequestIds
from tokenwire.requests import CancelReason, FinishReason, Terminal, TokenLogprob, Usage, name_violations
from tokenwire.sampling import refuse
from tokenwire.session import PROTOCOL_VERSION
from tokenwire.session_server import handles_of
from tokenwire.v1 import common_pb2, model_pb2
from tokenwire.version import __version__
from tokenwire.wire import CANCEL_FROM_WIRE, context_from_wire, options_from_wire

log = logging.getLogger(__name__)

MAX_UNSENT = 1_000_000
"""What may wait to be read (`TokenFrames.num_unsent`); beyond it submits are refused, beyond twice it the session."""
BEHIND = f"this session's peer does not read what it is sent: more than {MAX_UNSENT} tokens and ends wait"
SLOW_READER_RETRY_S = 1.0
IDLE_LOAD_S = 1.0
"""How often load is sent when there is nothing else."""


def request_from_wire(message: model_pb2.TokenRequest, *, call_remaining_s: float | None = None) -> TokenRequest:
    """A token request as plain values. Raises InvalidRequest, and Unsupported for what is not built."""
    refuse(name_violations("cache_salt", message.cache_salt))
    return TokenRequest(
        context=context_from_wire(message.context, call_remaining_s=call_remaining_s),
        token_ids=list(message.token_ids),
        options=options_from_wire(message.options),
        model=message.model,
        num_generated_tokens=message.num_generated_tokens,
        first_choice=message.first_choice,
        vocabulary=message.fingerprint.vocabulary,
        cache_salt=message.cache_salt,
    )


COMPILING = 0
"""Stands for the sequence id of a choice whose constraint is being compiled; the engine's begin at 1."""


class TokenSession:
    """One peer's session. Also the sink of its sequences: frames fill until the writer takes them."""

    def __init__(
        self, engine: EngineClient, state: TierState, lessor: Lessor, on_close: Callable[["TokenSession"], None]
    ) -> None:
        self._engine = engine
        self._state = state
        self._lessor = lessor
        self._claim = lessor.open()
        self._on_close = on_close
        self._open: dict[int, int] = {}
        """Sequence id, or COMPILING, of each open handle."""
        self._compilations: set[asyncio.Task[None]] = set()
        self._ids = RequestIds()
        """Each with the number of the first of its request's choices here: parts of one request share its id."""
        self._last_handle = 0
        self._frames = TokenFrames()
        self._drain: common_pb2.Drain | None = None
        """Drain, until it is sent."""
        self._draining = False
        self._card_changed = False
        self._wake = asyncio.Event()
        self._half_closed = False
        self._error: TokenwireError | None = None

    def hello(self) -> model_pb2.ModelServiceSessionResponse:
        """The first frame down."""
        hello = common_pb2.Hello(
            protocol_version=PROTOCOL_VERSION, peer=f"tokenwire-model/{__version__}", epoch=self._engine.epoch
        )
        hello.models.append(self._state.card())
        return model_pb2.ModelServiceSessionResponse(hello=hello, load=self._state.load(), credit=self._credit())

    def on_frame(self, frame: model_pb2.ModelServiceSessionRequest) -> None:
        """Take cancels, submits, and cancels of those.

        A handle out of order ends the session, as does a peer that submits and does not read; any other fault ends its
        request alone.
        """
        if self._frames.num_unsent > 2 * MAX_UNSENT:
            raise Overloaded(BEHIND, reason="SLOW_READER", retry_after_s=SLOW_READER_RETRY_S)
        self._cancel(frame.cancels)
        held = [(demand.requests, demand.tokens) for demand in frame.demand]
        self._lessor.report(self._claim, sum(requests for requests, _ in held), sum(tokens for _, tokens in held))
        for submit in frame.submits:
            self._submit(submit)
        if frame.submits:
            self._cancel(frame.cancels)

    def half_close(self) -> None:
        """The peer submits nothing more."""
        self._half_closed = True
        self._wake.set()

    def drain(self, reason: str, grace_s: float) -> None:
        """Ask the peer to put new Submits on another stream; this one ends once nothing is open for IDLE_LOAD_S."""
        self._draining = True
        self._drain = common_pb2.Drain(reason=reason, grace_ms=round(grace_s * 1000))
        self._wake.set()

    def announce_card(self) -> None:
        """What Hello said of the model has changed: say it anew with the next frame."""
        self._card_changed = True
        self._wake.set()

    def end(self, error: TokenwireError) -> None:
        """End the stream with this status once what waits to be sent has been."""
        for handle, sequence_id in list(self._open.items()):
            if sequence_id == COMPILING:
                self.on_end(handle, Terminal(FinishReason.ERROR, error=error))
        if not self._frames.is_empty:
            self._frames.end_step()
        self._error = error
        self._wake.set()

    async def next_frame(self) -> model_pb2.ModelServiceSessionResponse | None:
        """The next frame down: at least load once a second; None when half-closed or drained and everything has ended.

        Raises what `end` was called with.
        """
        try:
            async with asyncio.timeout(IDLE_LOAD_S):
                await self._wake.wait()
        except TimeoutError:
            if self._draining and not self._open:
                return None
            return model_pb2.ModelServiceSessionResponse(load=self._state.load(), credit=self._credit())
        self._wake.clear()
        nothing_waits = self._frames.is_empty
        if self._error is not None and nothing_waits:
            raise self._error
        if self._half_closed and nothing_waits and not self._open:
            return None
        return self._take_frame()

    def close(self) -> None:
        """Abort what is still open: nobody is there to read it."""
        for sequence_id in self._open.values():
            self._engine.abort(sequence_id, CancelReason.CLIENT)
        self._open.clear()
        for task in self._compilations:
            task.cancel()
        self._lessor.close(self._claim)
        self._on_close(self)

    def on_token(self, handle: int, token_id: int, logprob: TokenLogprob | None) -> None:
        """Add to the frame being filled."""
        self._frames.add_token(handle, token_id, logprob)

    def on_prompt_logprobs(self, handle: int, logprobs: list[TokenLogprob]) -> None:
        """Add to the frame being filled."""
        self._frames.add_prompt_logprobs(handle, logprobs)

    def on_end(self, handle: int, terminal: Terminal) -> None:
        """Add the terminal event to the frame being filled."""
        self._open.pop(handle, None)
        self._frames.add_end(handle, terminal)

    def flush(self) -> None:
        """Let the writer take what has been filled in."""
        self._frames.end_step()
        self._wake.set()

    def _take_frame(self) -> model_pb2.ModelServiceSessionResponse:
        frame = self._frames.take()
        for finish in frame.finishes:
            self._ids.let_go(finish.handle)
        frame.load.CopyFrom(self._state.load())
        frame.credit.CopyFrom(self._credit())
        if self._drain is not None:
            frame.drain.CopyFrom(self._drain)
            self._drain = None
        if self._card_changed:
            frame.models.append(self._state.card())
            self._card_changed = False
        if self._frames.has_more or self._error is not None or (self._half_closed and not self._open):
            self._wake.set()  # there is another, or this was the last
        return frame

    def _credit(self) -> common_pb2.AdmissionCredit:
        leased = self._lessor.lease(self._claim, *self._engine.room)
        return common_pb2.AdmissionCredit(
            requests=leased.requests, tokens=leased.tokens, ttl_ms=round(TTL_S * 1000)
        )  # fmt: skip

    def _submit(self, submit: model_pb2.TokenSubmit) -> None:
        handles = handles_of(submit.handle, submit.request.options.num_choices, self._last_handle)
        self._last_handle = handles[-1]
        try:
            self._admit(submit.handle, submit.request)
        except TokenwireError as error:
            usage = Usage(prompt_tokens=len(submit.request.token_ids))
            for handle in handles:
                self.on_end(handle, Terminal(FinishReason.ERROR, usage, error=error))
            self.flush()

    def _admit(self, first: int, message: model_pb2.TokenRequest) -> None:
        if self._frames.num_unsent > MAX_UNSENT:
            raise Overloaded(BEHIND, reason="SLOW_READER", retry_after_s=SLOW_READER_RETRY_S)
        request = request_from_wire(message)
        request_id, first_choice = request.context.request_id, request.first_choice
        self._ids.refuse_taken(request_id, first_choice)
        handles = range(first, first + request.options.num_choices)
        grammar = self._state.grammars.known(request.options.constraint)
        if grammar is not None:
            self._start(request, grammar, handles, handles)
            self._ids.take(handles, request_id, first_choice)
            return
        self._state.check(request)
        self._ids.take(handles, request_id, first_choice)
        self._open.update((handle, COMPILING) for handle in handles)
        task = asyncio.ensure_future(self._compile(request, handles))
        self._compilations.add(task)
        task.add_done_callback(self._compilations.discard)

    async def _compile(self, request: TokenRequest, handles: range) -> None:
        """Compile a request's constraint, then start those of its choices that are still wanted."""
        try:
            grammar = await self._state.grammars.compile(request.options.constraint)
            wanted = [handle for handle in handles if handle in self._open]
            if wanted:
                self._start(request, grammar, handles, wanted)
        except TokenwireError as error:
            self._fail(request, handles, error)
        except Exception as error:
            log.error("a request failed", exc_info=error, extra=fields(request_id=request.context.request_id))
            self._fail(request, handles, Internal(f"the request could not be prepared: {type(error).__name__}"))

    def _fail(self, request: TokenRequest, handles: range, error: TokenwireError) -> None:
        usage = Usage(prompt_tokens=len(request.token_ids) - request.num_generated_tokens)
        for handle in handles:
            if handle in self._open:
                self.on_end(handle, Terminal(FinishReason.ERROR, usage, error=error))
        self.flush()

    def _start(self, request: TokenRequest, grammar: str, handles: range, wanted: Sequence[int]) -> None:
        """Send a request's sequences to the engine: those of the handles that are `wanted`."""
        sequences = self._state.admission().sequences(request, self._engine.next_id, grammar)
        self._engine.admit(sequences)
        for handle, sequence in zip(handles, sequences, strict=True):
            if handle in wanted:
                self._open[handle] = sequence.sequence_id
                self._engine.submit(sequence, self, handle, request.context.traceparent)

    def _cancel(self, cancels: Iterable[common_pb2.Cancel]) -> None:
        for cancel in cancels:
            self._ids.let_go(cancel.handle)
            sequence_id = self._open.get(cancel.handle)
            if sequence_id is not None:
                reason = CANCEL_FROM_WIRE.get(cancel.reason, CancelReason.CLIENT)
                self._engine.abort(sequence_id, reason)
                if sequence_id == COMPILING:
                    self.on_end(cancel.handle, Terminal(FINISH_OF_CANCEL[reason]))
                    self.flush()
