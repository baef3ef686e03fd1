"""gRPC clients that never read, read a byte a second, stop within a message or vanish without a word, beside others."""

import asyncio
from collections import Counter
from collections.abc import Callable

import pytest

from tests.chaos.processes import scrape
from tests.chaos.scenario import Fault, Record, under_load
from tests.chaos.stack import ChaosStack
from tests.chaos.test_clients import NUM_CLIENTS, clients_that_send, ended, read_one_byte
from tests.fakes.grpc_bytes import call_bytes
from tests.fakes.proxy import Proxy
from tests.waiting import wait_for
from tokenwire.client import AsyncClient
from tokenwire.v1 import gateway_pb2

SHORT, LONG = pytest.mark.extended, pytest.mark.chaos
NUM_TOKENS = 8000
"""More than is generated while a row lasts."""


def long_call() -> bytes:
    request = gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt(text="Tell me all")])
    request.options.stop.max_tokens, request.options.stop.ignore_eos = NUM_TOKENS, True
    return call_bytes("/tokenwire.v1.GenerationService/Generate", request.SerializeToString())


def grpc_port(stack: ChaosStack) -> int:
    return stack.gateway_port


def vanish_without_a_word(stack: ChaosStack) -> None:
    """Their network swallows everything from one moment on: no end, no reset, no answer to pings."""

    async def main() -> None:
        async with Proxy(stack.gateway_port) as proxy, AsyncClient(proxy.target, max_attempts=1) as client:
            streams = [
                client.generate(f"Story {n}", max_tokens=NUM_TOKENS, ignore_eos=True) for n in range(NUM_CLIENTS)
            ]
            reading = [asyncio.ensure_future(ended(stream)) for stream in streams]

            def told() -> str:
                return f"{open_streams(stack)} are open, ended are {Counter(e.result() for e in reading if e.done())}"

            await asyncio.to_thread(wait_for, lambda: open_streams(stack) >= NUM_CLIENTS, told=told)
            proxy.held = True
            await asyncio.to_thread(wait_for, lambda: open_streams(stack) < NUM_CLIENTS / 2, told=told)
            proxy.held = False
            assert "LENGTH" not in await asyncio.gather(*reading)

    asyncio.run(main())


def open_streams(stack: ChaosStack) -> float:
    return scrape(stack.gateway.metrics_port)["open_streams"]


CLIENTS = [
    pytest.param("100 gRPC clients that never read for 5 s, then vanish",
                 clients_that_send(long_call(), 5, port=grpc_port), marks=SHORT),
    pytest.param("100 gRPC clients that read a byte a second for 10 s, then vanish",
                 clients_that_send(long_call(), 10, read_one_byte, grpc_port), marks=LONG),
    pytest.param("100 gRPC clients that send half a call, then vanish",
                 clients_that_send(long_call()[:-10], 3, port=grpc_port), marks=LONG),
    pytest.param("100 gRPC clients that vanish without a word", vanish_without_a_word, marks=LONG),
]  # fmt: skip


@pytest.mark.model
@pytest.mark.parametrize(("name", "begin"), CLIENTS)
def test_the_stack_outlives(calm: ChaosStack, record: Record, name: str, begin: Callable[[ChaosStack], object]) -> None:
    record.rows.append(asyncio.run(under_load(calm, Fault(name, begin))))
