"""A mock of vLLM's gRPC engine as Shepherd Model Gateway speaks it: tokens out of a table, one tick for all streams.

    python smg_worker.py PORT STEP_MS VOCAB_SIZE MODEL_FOLDER

Runs in the peer's environment and imports nothing of this project. It stands for an engine that costs nothing: HTTP/2
is read by the h2 package, while a stream's messages are framed when its request comes, and a tick is one write of
ready-made frames for all streams. STEP_MS 0 ticks as often as the loop turns. Prints a line once it listens.
"""

import asyncio
import random
import struct
import sys
import time
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import uvloop
from smg_grpc_proto import vllm_engine_pb2 as pb

SERVICE = "/vllm.grpc.engine.VllmEngine/"
OK_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
OK_TRAILERS = [("grpc-status", "0")]
UNIMPLEMENTED = [*OK_HEADERS, ("grpc-status", "12"), ("grpc-message", "the mock has no such method")]


def framed(message: bytes) -> bytes:
    """With gRPC's prefix."""
    return b"\x00" + struct.pack(">I", len(message)) + message


def data_frame(stream_id: int, payload: bytes) -> bytes:
    """One HTTP/2 DATA frame that ends nothing."""
    return struct.pack(">I", len(payload))[1:] + b"\x00\x00" + struct.pack(">I", stream_id) + payload


class Stream:
    """One request that is being answered."""

    def __init__(self, connection: "Connection", stream_id: int, frames: list[tuple[bytes, int]]) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.frames = frames
        """In the order of the ticks, each with the bytes that count against the peer's window."""
        self.position = 0


class Clock:
    """Advances every stream by one token a tick while there are any."""

    def __init__(self, step_s: float) -> None:
        self.streams: dict[Stream, None] = {}
        self._step_s = step_s
        self._due_s = 0.0
        self._running = False

    def add(self, stream: Stream) -> None:
        """From the next step on."""
        self.streams[stream] = None
        if not self._running:
            self._running = True
            self._due_s = time.monotonic()
            self._schedule()

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        if self._step_s:
            self._due_s = max(self._due_s, time.monotonic() - self._step_s) + self._step_s
            loop.call_at(self._due_s, self._tick)
        else:
            loop.call_soon(self._tick)

    def _tick(self) -> None:
        ended: list[Stream] = []
        for stream in self.streams:
            if not stream.connection.put(*stream.frames[stream.position]):
                continue  # the peer's window is full: this stream waits a tick
            stream.position += 1
            if stream.position == len(stream.frames):
                ended.append(stream)
        for stream in ended:
            del self.streams[stream]
            stream.connection.end(stream.stream_id)
        for connection in {stream.connection: None for stream in [*self.streams, *ended]}:
            connection.flush()
        if self.streams:
            self._schedule()
        else:
            self._running = False


class Engine:
    """What is answered."""

    def __init__(self, clock: Clock, vocab_size: int, folder: str) -> None:
        self.clock = clock
        self._folder = folder
        self._vocab_size = vocab_size
        rng = random.Random(0)
        self._tokens = [rng.randrange(vocab_size) for _ in range(65_536)]
        self._next = 0
        self.unary: dict[str, Callable[[], bytes]] = {
            "HealthCheck": lambda: pb.HealthCheckResponse(healthy=True, message="mock").SerializeToString(),
            "GetModelInfo": self._model_info,
            "GetServerInfo": lambda: pb.GetServerInfoResponse(server_type="vllm-grpc").SerializeToString(),
            "Abort": lambda: pb.AbortResponse().SerializeToString(),
            "GetLoads": lambda: pb.GetLoadsResponse(dp_rank_count=1).SerializeToString(),
        }

    def frames_of(self, stream_id: int, body: bytes) -> list[tuple[bytes, int]]:
        """The frames of the answer to one Generate, a token each; the last holds the end as well."""
        request = pb.GenerateRequest.FromString(body)
        num_prompt, num_tokens = len(request.tokenized.input_ids), request.sampling_params.max_tokens or 16
        begin = self._next % (len(self._tokens) - num_tokens)
        self._next += num_tokens
        tokens = self._tokens[begin : begin + num_tokens]
        frames: list[tuple[bytes, int]] = []
        for position, token in enumerate(tokens, 1):
            chunk = pb.GenerateStreamChunk(token_ids=[token], prompt_tokens=num_prompt, completion_tokens=position)
            payload = framed(pb.GenerateResponse(chunk=chunk).SerializeToString())
            frames.append((data_frame(stream_id, payload), len(payload)))
        complete = pb.GenerateComplete(
            output_ids=tokens, finish_reason="length", prompt_tokens=num_prompt, completion_tokens=num_tokens
        )
        payload = framed(pb.GenerateResponse(complete=complete).SerializeToString())
        last, size = frames[-1]
        frames[-1] = last + data_frame(stream_id, payload), size + len(payload)
        return frames

    def _model_info(self) -> bytes:
        return pb.GetModelInfoResponse(
            model_path=self._folder, is_generation=True, max_context_length=8192, vocab_size=self._vocab_size,
            served_model_name="model", tokenizer_path=self._folder, model_type="llama",
            architectures=["LlamaForCausalLM"], max_req_input_len=8192,
        ).SerializeToString()  # fmt: skip


class Connection(asyncio.Protocol):
    """One HTTP/2 connection. Data is accounted for here, past h2, which would take many times its cost."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._transport: asyncio.Transport | None = None
        self._bodies: dict[int, tuple[str, bytearray]] = {}
        self._streams: dict[int, Stream] = {}
        self._out: list[bytes] = []
        self._num_sent = 0
        """Bytes of data that h2 does not know of."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(2**30)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        for stream in self._streams.values():
            self._engine.clock.streams.pop(stream, None)
        self._streams.clear()

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                self._bodies[event.stream_id] = (dict(event.headers)[":path"], bytearray())
            elif isinstance(event, h2.events.DataReceived):
                self._bodies[event.stream_id][1].extend(event.data)
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                self._forget(event.stream_id)
            if isinstance(event, h2.events.StreamEnded) and event.stream_id in self._bodies:
                path, body = self._bodies.pop(event.stream_id)
                self._answer(event.stream_id, path.removeprefix(SERVICE), bytes(body[5:]))
        self.flush()

    def put(self, frames: bytes, size: int) -> bool:
        """Take data for the next `flush`; False where the peer's window has no room for its `size` bytes."""
        if self._h2.outbound_flow_control_window - self._num_sent < size:
            return False
        self._num_sent += size
        self._out.append(frames)
        return True

    def end(self, stream_id: int) -> None:
        """The trailers, behind the data."""
        if self._streams.pop(stream_id, None) is not None:
            self._h2.send_headers(stream_id, OK_TRAILERS, end_stream=True)
            self._out.append(self._h2.data_to_send())

    def flush(self) -> None:
        """One write of everything."""
        self._out.append(self._h2.data_to_send())
        data, self._out = b"".join(self._out), []
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _answer(self, stream_id: int, method: str, body: bytes) -> None:
        if method == "Generate":
            self._h2.send_headers(stream_id, OK_HEADERS)
            stream = self._streams[stream_id] = Stream(self, stream_id, self._engine.frames_of(stream_id, body))
            self._engine.clock.add(stream)
        elif method in self._engine.unary:
            self._h2.send_headers(stream_id, OK_HEADERS)
            self._h2.send_data(stream_id, framed(self._engine.unary[method]()))
            self._h2.send_headers(stream_id, OK_TRAILERS, end_stream=True)
        else:
            self._h2.send_headers(stream_id, UNIMPLEMENTED, end_stream=True)

    def _forget(self, stream_id: int) -> None:
        self._bodies.pop(stream_id, None)
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self._engine.clock.streams.pop(stream, None)


async def main() -> None:
    port, step_ms, vocab_size, folder = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    engine = Engine(Clock(step_ms / 1000), vocab_size, folder)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(engine), "127.0.0.1", port)
    print("listening", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
