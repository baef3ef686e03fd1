"""A Session spoken frame by frame, which refuses what a server must never send. Does not know what a case wants."""

from collections.abc import Callable
from typing import Any, Self

import grpc

from tokenwire.conformance.results import expect
from tokenwire.conformance.target import Target, check_finish, options_of
from tokenwire.errors import TokenwireError
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import tokenizer_pb2


class Peer:
    """One stream, and all that came on it by handle. Leaving its block cancels it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.call = target.stub.Session(metadata=target.metadata)
        self.hello = pb.Hello()
        self.submitted: dict[int, int] = {}
        """Handle → tokens granted so far; -1: no limit."""
        self.texts: dict[int, str] = {}
        self.num_tokens: dict[int, int] = {}
        self.finishes: dict[int, pb.Finish] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()

    async def greet(self) -> Self:
        """Hello each way. Raises CaseFailed."""
        await self.send(hello=pb.Hello(protocol_version=1, peer="tokenwire-conformance"))
        frame = await self.call.read()
        expect(frame is not grpc.aio.EOF, "the stream ended before the server said hello")
        expect(frame.HasField("hello"), f"the first frame has no hello: {frame}")
        expect(tokenizer_pb2.SessionResponse(hello=frame.hello) == frame, "the first frame holds more than hello")
        self.hello = frame.hello
        return self

    async def send(self, **fields: Any) -> None:
        """Write one frame."""
        await self.call.write(tokenizer_pb2.SessionRequest(**fields))

    def made(self, handle: int, text: str, *, credit: int | None = None, request_id: str = "", **options: Any) -> Any:
        """A Submit, which counts as sent; options as `options_of` takes them, and timeout_ms."""
        timeout_ms = options.pop("timeout_ms", None)
        context = pb.RequestContext(request_id=request_id, timeout_ms=timeout_ms)
        request = tokenizer_pb2.TextRequest(
            model=self.target.card.name, text=text, context=context, options=options_of(**options)
        )
        for choice in range(request.options.num_choices or 1):
            self.submitted[handle + choice] = -1 if credit is None else credit
        return tokenizer_pb2.Submit(handle=handle, request=request, initial_credit=credit)

    async def submit(self, handle: int, text: str, **fields: Any) -> None:
        """Write one Submit."""
        await self.send(submits=[self.made(handle, text, **fields)])

    async def credit(self, handle: int, tokens: int) -> None:
        """Grant more."""
        self.submitted[handle] += tokens
        await self.send(credits=[pb.Credit(handle=handle, tokens=tokens)])

    async def read(self) -> bool:
        """Take one frame; False at the end. Raises CaseFailed for what must never come."""
        frame = await self.call.read()
        if frame is grpc.aio.EOF:
            return False
        expect(not frame.HasField("hello"), "hello came twice")
        columns = len(frame.handles), len(frame.texts), len(frame.num_tokens)
        expect(len(set(columns)) == 1, f"the columns handles, texts, num_tokens have {columns} rows")
        for handle, text, num_tokens in zip(frame.handles, frame.texts, frame.num_tokens, strict=True):
            self._row(handle, text, num_tokens)
        for extras in frame.extras:
            number = list(frame.handles).count(extras.handle)
            expect(number == 1, f"extras of handle {extras.handle} came with {number} rows")
        for finish in frame.finishes:
            handle = finish.handle
            expect(handle in self.submitted, f"a finish came for handle {handle}, which was never submitted")
            expect(handle not in self.finishes, f"handle {handle} finished twice")
            self.finishes[handle] = finish
            check_finish(finish, self.num_tokens.get(handle, 0), f"handle {handle}")
        return True

    def _row(self, handle: int, text: str, num_tokens: int) -> None:
        expect(handle in self.submitted, f"a row came for handle {handle}, which was never submitted")
        expect(handle not in self.finishes, f"a row came for handle {handle} after its finish")
        self.texts[handle] = self.texts.get(handle, "") + text
        self.num_tokens[handle] = self.num_tokens.get(handle, 0) + num_tokens
        granted = self.submitted[handle]
        got = self.num_tokens[handle]
        expect(granted < 0 or got <= granted, f"handle {handle} was sent {got} tokens, granted were {granted}")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until something is true. Raises CaseFailed when the stream ends first."""
        while not condition():
            expect(await self.read(), "the server ended the stream while requests were open")

    async def finish(self, handle: int) -> pb.Finish:
        """Read until a handle's end."""
        await self.until(lambda: handle in self.finishes)
        return self.finishes[handle]

    async def tokens(self, handle: int, number: int) -> None:
        """Read until so many tokens came for a handle."""
        await self.until(lambda: self.num_tokens.get(handle, 0) >= number)

    async def refusal(self) -> TokenwireError:
        """The error with which the server ends the stream. Raises CaseFailed where it does not."""
        try:
            while await self.call.read() is not grpc.aio.EOF:
                pass
        except grpc.RpcError as error:
            return from_rpc_error(error)
        code = await self.call.code()
        expect(False, f"the stream ended with {code.name}")
        raise AssertionError
