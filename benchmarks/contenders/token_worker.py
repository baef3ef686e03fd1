"""A mock of our own model tier: tokens out of a table, one tick and one columnar frame for all sequences of a Session.

    python -m benchmarks.contenders.token_worker PORT STEP_MS VOCAB_SIZE MODEL_FOLDER

Stands for an engine that costs nothing, as `smg_worker.py` does for the peer: one process, no scheduler and no cache.
It speaks Hello, Submits, Cancels, admission credits and frames, and obeys max_tokens alone; a prompt takes no time.
STEP_MS 0 ticks as often as frames are taken. Prints a line once it listens.
"""

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import uvloop

from tokenwire.channels import server_options
from tokenwire.fingerprint import vocabulary_fingerprint
from tokenwire.models import served_name
from tokenwire.requests import FinishReason as Reason
from tokenwire.requests import ModelTimings, Terminal, Usage
from tokenwire.session import PROTOCOL_VERSION
from tokenwire.session_server import handles_of, run_session
from tokenwire.v1 import common_pb2, model_pb2, model_pb2_grpc
from tokenwire.wire import terminal_to_wire

TABLE = 65_536
"""Pseudo-random token ids, through which every sequence goes from a place of its own."""
MAX_CONTEXT_TOKENS = 8_192
LEASE = common_pb2.AdmissionCredit(requests=4_096, tokens=2**31, ttl_ms=10_000)
MAX_BATCH_SIZE = 4_096
IDLE_S = 1.0
"""How often an idle session is leased room anew."""


class Sequence:
    """One that is being answered."""

    __slots__ = ("began_s", "first_s", "num_left", "num_prompt", "num_tokens", "place")

    def __init__(self, num_prompt: int, num_tokens: int, place: int) -> None:
        self.num_prompt = num_prompt
        self.num_tokens = num_tokens
        self.num_left = num_tokens
        self.place = place
        self.began_s = self.first_s = time.monotonic()
        """When it came, and when its first token was made."""

    def end(self, reason: Reason) -> Terminal:
        """Its terminal event."""
        timings = ModelTimings(0.0, self.first_s - self.began_s, time.monotonic() - self.first_s)
        usage = Usage(self.num_prompt, 0, self.num_tokens - self.num_left)
        return Terminal(reason, usage, model_timings=timings)


class TokenSession:
    """One peer's session: a `ServerSession`."""

    def __init__(self, hello: common_pb2.Hello, tokens: list[int], step_s: float) -> None:
        self._hello = hello
        self._tokens = tokens
        self._step_s = step_s
        self._due_s = 0.0
        self._running: dict[int, Sequence] = {}
        self._ended: list[common_pb2.Finish] = []
        self._last_handle = 0
        self._num_seen = 0
        self._ending = False
        self._wake = asyncio.Event()

    def hello(self) -> model_pb2.ModelServiceSessionResponse:
        return model_pb2.ModelServiceSessionResponse(hello=self._hello, credit=LEASE)

    def on_frame(self, frame: model_pb2.ModelServiceSessionRequest) -> None:
        for submit in frame.submits:
            request = submit.request
            for handle in handles_of(submit.handle, request.options.num_choices or 1, self._last_handle):
                self._last_handle = handle
                num_tokens = request.options.stop.max_tokens or MAX_CONTEXT_TOKENS - len(request.token_ids)
                self._num_seen += 1
                place = (self._num_seen * 1_009) % TABLE
                self._running[handle] = Sequence(len(request.token_ids), num_tokens, place)
        for cancel in frame.cancels:
            sequence = self._running.pop(cancel.handle, None)
            if sequence is not None:
                self._ended.append(terminal_to_wire(sequence.end(Reason.CANCELLED), cancel.handle))
        self._wake.set()

    def half_close(self) -> None:
        self._ending = True
        self._wake.set()

    async def next_frame(self) -> model_pb2.ModelServiceSessionResponse | None:
        while not self._running and not self._ended:
            if self._ending:
                return None
            self._wake.clear()
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                return self._step()  # with nothing but a new lease, as the model tier sends it
            self._due_s = time.monotonic()
        if self._step_s:
            now_s = time.monotonic()
            self._due_s = max(self._due_s, now_s - self._step_s) + self._step_s
            await asyncio.sleep(self._due_s - now_s)
        return self._step()

    def close(self) -> None:
        self._running.clear()

    def _step(self) -> model_pb2.ModelServiceSessionResponse:
        """One token of every sequence, and the ends."""
        tokens, token_ids, ended = self._tokens, [], []
        for handle, sequence in self._running.items():
            place = sequence.place
            token_ids.append(tokens[place])
            sequence.place = place + 1 if place + 1 < TABLE else 0
            if sequence.num_left == sequence.num_tokens:
                sequence.first_s = time.monotonic()
            sequence.num_left -= 1
            if not sequence.num_left:
                ended.append(handle)
        frame = model_pb2.ModelServiceSessionResponse(
            handles=self._running, token_ids=token_ids, finishes=self._ended, credit=LEASE
        )
        self._ended = []
        for handle in ended:
            frame.finishes.append(terminal_to_wire(self._running.pop(handle).end(Reason.LENGTH), handle))
        frame.load.running, frame.load.max_batch_size = len(self._running), MAX_BATCH_SIZE
        return frame


class TokenWorker(model_pb2_grpc.ModelServiceServicer):
    """Answers Session and nothing else."""

    def __init__(self, folder: Path, step_s: float, vocab_size: int) -> None:
        rng = random.Random(0)
        self._tokens = [rng.randrange(vocab_size) for _ in range(TABLE)]
        self._step_s = step_s
        card = common_pb2.ModelCard(
            name=served_name(str(folder)),
            fingerprint=common_pb2.Fingerprint(vocabulary=vocabulary_fingerprint(folder / "tokenizer.json")),
            max_context_tokens=MAX_CONTEXT_TOKENS,
            vocab_size=vocab_size,
        )
        self._hello = common_pb2.Hello(
            protocol_version=PROTOCOL_VERSION, peer="token-worker", epoch=time.time_ns(), models=[card]
        )

    async def Session(  # noqa: N802
        self,
        frames: AsyncIterator[model_pb2.ModelServiceSessionRequest],
        context: grpc.aio.ServicerContext,
    ) -> None:
        """Many sequences on one stream."""
        await run_session(frames, context, TokenSession(self._hello, self._tokens, self._step_s))


async def serve(port: int, worker: TokenWorker) -> None:
    """Until the process is ended."""
    server = grpc.aio.server(options=server_options(64 * 2**20))
    model_pb2_grpc.add_ModelServiceServicer_to_server(worker, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print(f"listening on {port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), TokenWorker(Path(sys.argv[4]), float(sys.argv[2]) / 1000, int(sys.argv[3]))))
