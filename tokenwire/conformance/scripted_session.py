"""One session of the scripted server: answers each Submit with its words, and notes what the client must not do."""

import asyncio
from typing import Any

from tokenwire.conformance.scripted_sequence import Sequence, Waves
from tokenwire.conformance.scripted_words import (
    ENDS,
    WRONG_ROWS,
    Script,
    num_sequences,
    refusal_of,
    refusal_of_choices,
    whole_end,
)
from tokenwire.errors import Unavailable
from tokenwire.requests import FinishReason, Terminal, Usage
from tokenwire.session import PROTOCOL_VERSION
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import terminal_to_wire

UNKNOWN_FIELD = b"\xfa\x7f\x06future"
"""Field 2047, length-delimited: in no message of the contract."""
UNKNOWN_REASON = 99
WRONG_STREAM_S = 5.0
"""How long a client that has gone on elsewhere may take to end a stream on which the protocol was broken."""


class ScriptedSession:
    """The server's side of one stream, and what was seen on it."""

    def __init__(self, script: Script, card: pb.ModelCard, faults: list[str], streams: list["ScriptedSession"]) -> None:
        self.sequences: dict[int, Sequence] = {}
        self.submits: list[tokenizer_pb2.Submit] = []
        self.events: list[tuple[str, int]] = []
        """("submit" | "cancel" | "credit" | "finish", handle) in the order in which they came or went."""
        self.half_closed = False
        self.ended = asyncio.Event()
        self.released = asyncio.Event()
        """What is held goes on."""
        self._script = script
        self._card = card
        self._faults = faults
        self._streams = streams
        self._rows: list[tuple[int, str]] = []
        self._finishes: list[pb.Finish] = []
        self._others: list[tokenizer_pb2.SessionResponse] = []
        self._waves = Waves(script.num_waves)
        self._num_open = 0
        self._wake = asyncio.Event()
        self._broken = self._went_wrong = False
        self._drains_next = self._drained = self._client_drained = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, requests: Any, context: Any) -> None:
        """To the end of the stream. Raises Unavailable where the script breaks it."""
        first = await anext(aiter(requests), None)
        if first is None:
            return  # its client gave up before it had said anything
        if not first.HasField("hello") or tokenizer_pb2.SessionRequest(hello=first.hello) != first:
            self._faults.append("the first frame of a session is not hello alone")
        elif first.hello.protocol_version != PROTOCOL_VERSION:
            self._faults.append(f"hello.protocol_version is {first.hello.protocol_version}, not {PROTOCOL_VERSION}")
        hello = pb.Hello(
            protocol_version=PROTOCOL_VERSION, peer="tokenwire-conformance", epoch=1, models=[self._card],
            max_requests=self._script.max_requests,
        )  # fmt: skip
        if not self._script.greets:
            await asyncio.Event().wait()
        await context.write(tokenizer_pb2.SessionResponse(hello=hello))
        if self._script.future:
            self._others.append(tokenizer_pb2.SessionResponse())
            self._others.append(tokenizer_pb2.SessionResponse(models=[self._card]))
        reader = asyncio.ensure_future(self._read(requests))
        try:
            await self._write(context)
        finally:
            reader.cancel()
            for task in self._tasks:
                task.cancel()

    async def _read(self, requests: Any) -> None:
        async for frame in requests:
            if frame.HasField("hello"):
                self._faults.append("hello came twice on a session")
            before = max(self.sequences, default=0)
            self._cancel(cancel for cancel in frame.cancels if cancel.handle <= before)
            for submit in frame.submits:
                self._submit(submit)
            self._cancel(cancel for cancel in frame.cancels if cancel.handle > before)
            for credit in frame.credits:
                self._grant(credit.handle, credit.tokens)
            if frame.HasField("drain"):
                self._client_drained = True
                self._wake.set()
        self.half_closed = True
        self._wake.set()

    def _submit(self, submit: tokenizer_pb2.Submit) -> None:
        last = max(self.sequences, default=0)
        if submit.handle <= last:
            self._faults.append(f"handle {submit.handle} is not greater than {last}, the last one of its stream")
        if self._went_wrong:
            self._faults.append(f"Submit {submit.handle} came on a stream on which the server had broken the protocol")
        if self._client_drained:
            self._faults.append(f"Submit {submit.handle} came in a frame after the client's own Drain")
        for stream in self._streams:
            if stream is not self:
                stream.released.set()
        running = (each.request for each in self.sequences.values() if not (each.finished or each.cancelled))
        request_id = submit.request.context.request_id
        if request_id and request_id in {request.context.request_id for request in running}:
            self._faults.append(f"request_id {request_id!r} is shared by two running requests")
        self.submits.append(submit)
        self.events.append(("submit", submit.handle))
        for choice in range(num_sequences(submit.request.options)):
            initial = submit.initial_credit if submit.HasField("initial_credit") else None
            sequence = Sequence(submit.handle + choice, submit.request, initial)
            if initial is not None:
                sequence.credit = initial
            self.sequences[sequence.handle] = sequence
            task = asyncio.ensure_future(self._answer(sequence))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._num_open += 1
        self._waves.submitted()
        if 0 < self._script.max_requests < self._num_open:
            most = self._script.max_requests
            self._faults.append(f"{self._num_open} sequences are open, hello.max_requests is {most}")

    def _cancel(self, cancels: Any) -> None:
        for cancel in cancels:
            self.events.append(("cancel", cancel.handle))
            if (sequence := self.sequences.get(cancel.handle)) is not None:
                sequence.cancelled = True
                sequence.changed.set()

    def _grant(self, handle: int, tokens: int) -> None:
        self.events.append(("credit", handle))
        sequence = self.sequences.get(handle)
        if sequence is None or sequence.initial_credit is None:
            return
        sequence.granted.append(tokens)
        sequence.credit += tokens
        if 0 < self._script.most_ungranted < sequence.credit:
            self._faults.append(f"{sequence.credit} tokens are granted beyond those that were sent")
        sequence.changed.set()

    async def _answer(self, sequence: Sequence) -> None:
        words = sequence.request.text.split()
        order = words[0] if words else ""
        if (error := refusal_of(order) or refusal_of_choices(sequence.request.options)) is not None:
            self._finish(sequence, Terminal(FinishReason.ERROR, error=error))
            return
        await self._waves.turn()
        await self._wrong_streams_end()
        if order in WRONG_ROWS:
            self._wrong(sequence, *WRONG_ROWS[order])
            await asyncio.Event().wait()
        sent, end = whole_end(words, sequence.request.options)
        for number, word in enumerate(sent):
            await self._until(sequence, lambda: sequence.credit > 0)
            if sequence.cancelled:
                break
            if order == "hold" and number == 0:
                self._drains_next = self._script.drains
            self._row(sequence, word if number == 0 else f" {word}")
            await asyncio.sleep(0)
            if order in ENDS:
                end = ENDS[order]
                break
            if order == "hang":
                await self._until(sequence, lambda: False)
                self._row(sequence, " late")  # it was on its way when the Cancel came
            if order == "hold" and number == 0:
                await self._hold()
        if sequence.cancelled:
            end = Terminal(FinishReason.CANCELLED, Usage(len(words), 0, sequence.num_sent))
        self._finish(sequence, end)

    async def _until(self, sequence: Sequence, condition: Any) -> None:
        while not (condition() or sequence.cancelled):
            sequence.changed.clear()
            await sequence.changed.wait()

    async def _wrong_streams_end(self) -> None:
        """Wait for the ends of the streams on which the protocol was broken, as long as they may take."""
        for stream in self._streams:
            if stream._went_wrong and stream is not self:
                try:
                    async with asyncio.timeout(WRONG_STREAM_S):
                        await stream.ended.wait()
                except TimeoutError:
                    said = f"a stream on which the server had broken the protocol was open {WRONG_STREAM_S:g} s later"
                    self._faults.append(said)

    async def _hold(self) -> None:
        if self._script.breaks:
            self._broken = True
        self._wake.set()
        await self.released.wait()

    def _row(self, sequence: Sequence, text: str) -> None:
        self._rows.append((sequence.handle, text))
        sequence.num_sent += 1
        sequence.credit -= 1
        self._wake.set()

    def _wrong(self, sequence: Sequence, texts: tuple[str, ...], num_tokens: tuple[int, ...]) -> None:
        if texts:
            self._went_wrong = True
            frame = tokenizer_pb2.SessionResponse(handles=[sequence.handle], texts=texts, num_tokens=num_tokens)
            self._others.append(frame)
            self._wake.set()

    def _finish(self, sequence: Sequence, terminal: Terminal) -> None:
        finish = terminal_to_wire(terminal, sequence.handle)
        if self._script.future:
            finish.reason = UNKNOWN_REASON  # type: ignore[assignment]
        self._finishes.append(finish)
        self._wake.set()

    async def _write(self, context: Any) -> None:
        while True:
            while self._rows or self._finishes or self._others:
                await context.write(self._next_frame())
            if self._broken:
                raise Unavailable("the script breaks this stream", reason="SCRIPTED")
            if (self.half_closed or self._drained or self._client_drained) and self._num_open == 0:
                return
            self._wake.clear()
            await self._wake.wait()

    def _next_frame(self) -> tokenizer_pb2.SessionResponse:
        """One row per handle, and the ends of those that have no row left."""
        if self._others and not self._rows:
            return self._others.pop(0)
        rows, left = {}, []
        for handle, text in self._rows:
            if handle in rows:
                left.append((handle, text))
            else:
                rows[handle] = text
        self._rows = left
        waiting = {handle for handle, _ in left}
        ends = [finish for finish in self._finishes if finish.handle not in waiting]
        self._finishes = [finish for finish in self._finishes if finish.handle in waiting]
        for finish in ends:
            self.sequences[finish.handle].finished = True
            self.events.append(("finish", finish.handle))
        self._num_open -= len(ends)
        frame = tokenizer_pb2.SessionResponse(
            handles=rows, texts=rows.values(), num_tokens=[1] * len(rows), finishes=ends
        )
        if self._drains_next and not self._drained:
            frame.drain.reason = "conformance"
            self._drained = True
        if self._script.future:
            frame.MergeFromString(UNKNOWN_FIELD)
        return frame
