"""What a message costs the gateway in each form a client can have it: the measurement behind decision 26.

    python -m benchmarks.browsers                  # two minutes
    python -m benchmarks.browsers --rounds 1       # a look

The real tiers over the mock engine; the same streams in each form in turn, round after round. Counted is the CPU time
of the gateway's process per thousand tokens. Writes benchmarks/results/browsers.json and .md.
"""

import argparse
import asyncio
import base64
import json
import statistics
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from benchmarks.compare import say
from benchmarks.comparison.results import page, write
from benchmarks.loadgen.http_stream import ConnectionPool
from benchmarks.loadgen.loops import in_loop
from benchmarks.machine import machine, wait_until_quiet
from benchmarks.mock_stack import MockStack, mock_stack
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown
from tokenwire.v1 import gateway_pb2, gateway_pb2_grpc

TITLE = "What a message costs the gateway, by its form"
STREAMS = 64
OUTPUT_TOKENS = 200
STEP_MS = 10.0
CHAT = "/tokenwire.v1.GenerationService/Chat"
MESSAGES = [{"role": "user", "content": "hello"}]

Ask = Callable[[], Awaitable[None]]


def chat_request() -> gateway_pb2.ChatRequest:
    """One chat."""
    request = gateway_pb2.ChatRequest()
    request.conversation.messages.add(role="user", content="hello")
    request.options.stop.ignore_eos, request.options.stop.max_tokens = True, OUTPUT_TOKENS
    return request


def forms(pool: ConnectionPool, stub: Any) -> dict[str, Ask]:
    """How one stream is asked for in each form; each checks that its end came."""
    binary = chat_request().SerializeToString()
    options = {"stop": {"ignoreEos": True, "maxTokens": OUTPUT_TOKENS}}
    text = json.dumps({"conversation": {"messages": MESSAGES}, "options": options}).encode()
    openai = json.dumps(
        {"messages": MESSAGES, "ignore_eos": True, "max_tokens": OUTPUT_TOKENS, "stream": True}
    ).encode()

    def framed(payload: bytes) -> bytes:
        return struct.pack(">BI", 0, len(payload)) + payload

    def over_http(path: str, content_type: str, body: bytes, end: bytes) -> Ask:
        async def ask() -> None:
            tail = b""

            def keep(piece: bytes) -> None:
                nonlocal tail
                tail = (tail + piece)[-200:]

            status = await pool.post(path, body, keep, content_type)
            assert status == 200 and end in tail, (status, tail)

        return ask

    async def over_grpc() -> None:
        last = None
        async for message in stub.Chat(chat_request()):
            last = message
        assert last is not None and last.HasField("finish")

    trailers = b"grpc-status: 0\r\n"
    return {
        "gRPC": over_grpc,
        "OpenAI's server-sent events": over_http("/v1/chat/completions", "application/json", openai, b"[DONE]"),
        "Connect, protobuf": over_http(CHAT, "application/connect+proto", framed(binary), b"\x02\x00\x00\x00\x02{}"),
        "Connect, JSON": over_http(CHAT, "application/connect+json", framed(text), b"\x02\x00\x00\x00\x02{}"),
        "gRPC-Web": over_http(CHAT, "application/grpc-web+proto", framed(binary), trailers),
        "gRPC-Web, base64": over_http(
            CHAT, "application/grpc-web-text", base64.b64encode(framed(binary)),
            base64.b64encode(struct.pack(">BI", 0x80, len(trailers)) + trailers),
        ),
    }  # fmt: skip


async def measure(stack: MockStack, num_rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of the gateway per thousand tokens, by form, one per round."""
    pool = ConnectionPool(stack.host, stack.port)
    found: dict[str, list[float]] = {}
    async with grpc.aio.insecure_channel(f"{stack.host}:{stack.grpc_port}") as channel:
        asked = forms(pool, gateway_pb2_grpc.GenerationServiceStub(channel))
        for ask in asked.values():
            await asyncio.gather(*(ask() for _ in range(4)))  # connections, and what is made once
        for number in range(num_rounds):
            for name, ask in asked.items():
                before_s = stack.cpu_s("gateway")
                await asyncio.gather(*(ask() for _ in range(STREAMS)))
                used_s = stack.cpu_s("gateway") - before_s
                found.setdefault(name, []).append(1e6 * used_s / (STREAMS * OUTPUT_TOKENS))
                say(f"  round {number + 1}, {name}: {found[name][-1]:.1f} ms of CPU time per 1,000 tokens")
    pool.close()
    return found


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.browsers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=one_or_more, default=5, help="(default: 5)")
    parser.add_argument("--name", default="", help="of the files of results")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    refuse_unwritable(parser, given.out)
    if given.rounds > 1:  # one round is no record
        wait_until_quiet(say)
    where = machine()
    with mock_stack(model_mock_step_ms=STEP_MS, model_max_batch_size=STREAMS) as stack:
        found = in_loop(measure(stack, given.rounds))
    rows = [(name, statistics.median(costs), min(costs), max(costs)) for name, costs in found.items()]
    record = {"title": TITLE, "date": time.strftime("%Y-%m-%d"), "machine": where, "quiet": where["quiet"]}
    record |= {"streams": STREAMS, "output_tokens": OUTPUT_TOKENS, "step_ms": STEP_MS, "ms_per_1000_tokens": found}
    table = markdown(("form", "median", "least", "most"), rows)
    load = f"{STREAMS} streams, a token each {STEP_MS:g} ms; {given.rounds} rounds in turn"
    said = f"CPU milliseconds of the gateway per 1,000 tokens; {load}."
    text = page(TITLE, record, said, table)
    print(text)
    print(f"\nwritten to {write(record, text, given.name or 'browsers', given.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
