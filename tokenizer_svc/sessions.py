"""The server's side of a text Session: many text requests on one stream, columnar frames down.

Submits become `RunningRequest`s, whose text and terminal events go into the session's `TextOutbox`. A fault of one
request is its terminal event; a broken protocol ends the session, and a broken session cancels its requests below.
"""

import time
from collections.abc import Callable, Iterable

from tokenizer_svc.running_request import RunningRequest
from tokenizer_svc.tier import Tier
from tokenizer_svc.wire import request_from_wire
from tokenwire.embedding_wire import capabilities_to_wire
from tokenwire.errors import TokenwireError
from tokenwire.outbox import TextOutbox
from tokenwire.request_ids import RequestIds
from tokenwire.requests import CancelReason, FinishReason, Terminal
from tokenwire.session import PROTOCOL_VERSION
from tokenwire.session_server import handles_of
from tokenwire.v1 import common_pb2, tokenizer_pb2
from tokenwire.version import __version__
from tokenwire.wire import CANCEL_FROM_WIRE

EPOCH = time.time_ns()
"""Of this process; nothing that a peer remembers of another one holds."""


def model_card(tier: Tier) -> common_pb2.ModelCard:
    """What can be asked for here."""
    return common_pb2.ModelCard(
        name=tier.model,
        fingerprint=fingerprint(tier),
        max_context_tokens=tier.max_context_tokens,
        vocab_size=tier.tokenizer.vocab_size,
        adapters=sorted(tier.adapters),
        capabilities=capabilities_to_wire(generates=tier.generates, embeds=bool(tier.embedding_size)),
        embedding_size=tier.embedding_size,
    )


def fingerprint(tier: Tier) -> common_pb2.Fingerprint:
    """What token ids and chat prompts mean here."""
    template = tier.template.fingerprint if tier.template is not None else ""
    return common_pb2.Fingerprint(vocabulary=tier.tokenizer.fingerprint, chat_template=template)


class TextSession:
    """One peer's session."""

    def __init__(self, tier: Tier, on_close: Callable[["TextSession"], None]) -> None:
        self._tier = tier
        self._on_close = on_close
        self._outbox = TextOutbox()
        self._requests: dict[int, RunningRequest] = {}
        """The request of each handle whose request has not ended."""
        self._ids = RequestIds()
        self._last_handle = 0

    def hello(self) -> tokenizer_pb2.SessionResponse:
        """The first frame down."""
        hello = common_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            peer=f"tokenwire-tokenizer/{__version__}",
            epoch=EPOCH,
            models=[model_card(self._tier)],
            max_requests=self._tier.max_open,
        )
        return tokenizer_pb2.SessionResponse(hello=hello)

    def on_frame(self, frame: tokenizer_pb2.SessionRequest) -> None:
        """Take cancels, submits, cancels of those, and credits.

        A handle out of order ends the session; any other fault ends its request alone.
        """
        self._cancel(frame.cancels)
        for submit in frame.submits:
            self._submit(submit)
        if frame.submits:
            self._cancel(frame.cancels)
        for credit in frame.credits:
            self._outbox.grant(credit.handle, credit.tokens)

    def half_close(self) -> None:
        """The peer submits nothing more; what runs goes on."""
        self._outbox.end()

    def drain(self, reason: str, grace_s: float) -> None:
        """Ask the peer to put new Submits on another stream."""
        self._outbox.drain(reason, round(grace_s * 1000))

    def announce_card(self) -> None:
        """What Hello said of the model has changed."""
        self._outbox.announce([model_card(self._tier)])

    async def next_frame(self) -> tokenizer_pb2.SessionResponse | None:
        """What has come since the last frame; None once half-closed and everything has ended."""
        frame = await self._outbox.next_frame()
        if frame is not None:
            for finish in frame.finishes:
                self._ids.let_go(finish.handle)
        return frame

    def close(self) -> None:
        """Nobody reads any more: cancel below what is still open."""
        for request in list(self._requests.values()):
            request.close()
        self._outbox.close()
        self._on_close(self)

    def _submit(self, submit: tokenizer_pb2.Submit) -> None:
        handles = handles_of(submit.handle, submit.request.options.num_choices, self._last_handle)
        self._last_handle = handles[-1]
        credit = submit.initial_credit if submit.HasField("initial_credit") else None
        for handle in handles:
            self._outbox.open(handle, credit)
        try:
            self._start(submit.handle, submit.request)
        except TokenwireError as error:
            error.with_traceback(None)  # it waits to be sent, and its frames hold the Submit
            for handle in handles:
                self._outbox.finish(handle, Terminal(FinishReason.ERROR, error=error))

    def _start(self, first: int, message: tokenizer_pb2.TextRequest) -> None:
        request = request_from_wire(message)
        self._ids.refuse_taken(request.context.request_id)
        running = RunningRequest(self._tier, request, first, self._outbox, self._forget)
        running.start()
        handles = range(first, first + request.options.num_choices)
        self._ids.take(handles, request.context.request_id)
        for handle in handles:
            self._requests[handle] = running
            if request.context.deadline_s is not None:
                self._outbox.limit(handle, request.context.deadline_s)

    def _cancel(self, cancels: Iterable[common_pb2.Cancel]) -> None:
        for cancel in cancels:
            request = self._requests.get(cancel.handle)
            if request is not None:
                request.cancel(cancel.handle, CANCEL_FROM_WIRE.get(cancel.reason, CancelReason.CLIENT))
            self._ids.let_go(cancel.handle)
            self._outbox.discard_text(cancel.handle)

    def _forget(self, running: RunningRequest) -> None:
        for choice in running.choices:
            self._requests.pop(choice.handle, None)
