"""Every process of every tier is told to stop in turn and started again on its port, under load: nothing is lost.

Two gateways, two tokenizer tiers, two model tiers with the mock engine, and clients as they are told to be: they
connect to whichever gateway lets them in, and send nothing twice.
"""

import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.tier_processes import TierProcesses
from tests.waiting import wait_for, wait_until_serving
from tokenwire.addresses import free_ports
from tokenwire.client import AsyncClient, AsyncSession
from tokenwire.requests import FinishReason

pytestmark = pytest.mark.model

NUM_REQUESTS = 24
DRAIN_S = 30


@dataclass
class Member:
    """One process, its ports and how it is started."""

    module: str
    port: int
    flags: tuple[str, ...]
    process: Any = None


class RollingStack:
    """Two processes of each tier. Each can be replaced by another on the same ports."""

    def __init__(self, folder: Path, tiers: TierProcesses, workers: int) -> None:
        """`workers`: of each gateway and each tokenizer tier."""
        models, tokenizers, gateways, self.http_ports = (free_ports(8)[part : part + 2] for part in (0, 2, 4, 6))
        self._tiers = tiers
        self._num_above = 2 * workers
        shared = ("--workers", str(workers))
        self.members = [
            *(Member("model_svc", port, ("--model", str(folder), "--engine", "mock", "--mock-step-ms", "10"))
              for port in models),
            *(Member("tokenizer_svc", port, ("--model", str(folder), "--model-targets", addresses(models), *shared))
              for port in tokenizers),
            *(Member("gateway", port, ("--http-port", str(http), "--tokenizer-targets", addresses(tokenizers), *shared))
              for port, http in zip(gateways, self.http_ports, strict=True)),
        ]  # fmt: skip
        self.gateways = gateways
        for member in self.members:
            self.start(member)
        for member in self.members:
            self._until_serving(member)
        for member in self.members[:4]:
            self._until_found(member, self._num_above)

    def start(self, member: Member) -> None:
        common = ("--port", str(member.port), "--metrics-port", "0", "--drain-timeout-s", str(DRAIN_S))
        member.process = self._tiers.start(member.module, *common, *member.flags)

    def replace(self, member: Member) -> float:
        """SIGTERM, and another in its place, which those above have found. Returns how long the first took to end."""
        num_found = self._num_found(member)
        began_s = time.monotonic()
        member.process.send_signal(signal.SIGTERM)
        assert member.process.wait(DRAIN_S + 10) == 0, self._tiers.logs()
        took_s = time.monotonic() - began_s
        self.start(member)
        self._until_serving(member)
        if member.module != "gateway":
            self._until_found(member, num_found + self._num_above)
        return took_s

    def _until_serving(self, member: Member) -> None:
        wait_until_serving(f"127.0.0.1:{member.port}", member.process, self._tiers.logs)

    def _until_found(self, member: Member, number: int) -> None:
        wait_for(lambda: self._num_found(member) >= number, told=self._tiers.logs)

    def _num_found(self, member: Member) -> int:
        """How often it was connected to, by the processes above it."""
        address = f"127.0.0.1:{member.port}"
        logs = self._tiers.logs()
        return logs.count(f"model tier ready  target={address}") + logs.count(f"tokenizer tier {address} is connected")


def addresses(ports: list[int]) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports)


@contextmanager
def rolling_stack(folder: Path, logs: Path, workers: int) -> Iterator[RollingStack]:
    with TierProcesses(logs) as tiers:
        yield RollingStack(folder, tiers, workers)


def options_of(number: int) -> dict[str, Any]:
    """Short and long; greedy, and sampled with a seed."""
    max_tokens = random.Random(number).choice([3, 30, 150])
    return {"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0.8 * (number % 2), "seed": number}


def prompt_of(number: int) -> str:
    return f"Story number {number}. Once upon a time"


class Load:
    """Requests over every way in, each of which must give the text that it gave undisturbed."""

    def __init__(self, stack: RollingStack) -> None:
        self.stop = False
        self.num_ended: Counter[str] = Counter()
        self.num_not_let_in = 0
        """Connections that were refused, before anything was sent on them."""
        self._stack = stack
        self._expected: dict[int, str] = {}

    async def learn(self) -> None:
        """The texts, while nothing happens."""
        async with AsyncClient(f"127.0.0.1:{self._stack.gateways[0]}") as client:
            for number in range(NUM_REQUESTS):
                self._expected[number] = await client.generate(prompt_of(number), **options_of(number)).text()
        assert len(set(self._expected.values())) == NUM_REQUESTS

    async def run(self) -> None:
        """Until told to stop."""
        async with self._clients() as (clients, sessions):
            ways = [
                *(self._grpc(client) for client in clients for _ in range(2)),
                *(self._session(session) for session in sessions for _ in range(2)),
                *(self._http(stream=stream, keeps=keeps) for stream in (True, False) for keeps in (True, False)),
            ]
            await asyncio.gather(*ways)

    def _numbers(self) -> Iterator[int]:
        while not self.stop:
            yield random.randrange(NUM_REQUESTS)

    def _check(self, way: str, number: int, text: str) -> None:
        assert text == self._expected[number], (way, number)
        self.num_ended[way] += 1

    @asynccontextmanager
    async def _clients(self) -> AsyncIterator[tuple[list[AsyncClient], list[AsyncSession]]]:
        one, other = self._stack.gateways
        async with (
            AsyncClient(f"ipv4:{addresses([one, other])}") as first,
            AsyncClient(f"ipv4:{addresses([other, one])}") as second,
            first.session() as first_session,
            second.session() as second_session,
        ):
            yield [first, second], [first_session, second_session]

    async def _grpc(self, client: AsyncClient) -> None:
        for number in self._numbers():
            (output,) = await client.generate(prompt_of(number), **options_of(number)).outputs()
            assert output.terminal.reason is FinishReason.LENGTH, repr(output.terminal.error)
            self._check("Generate", number, output.text)

    async def _session(self, session: AsyncSession) -> None:
        for number in self._numbers():
            (output,) = await (await session.submit(prompt_of(number), **options_of(number))).outputs()
            assert output.terminal.reason is FinishReason.LENGTH, repr(output.terminal.error)
            self._check("Session", number, output.text)

    async def _http(self, *, stream: bool, keeps: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=10 if keeps else 0)
        ways = f"HTTP {'stream' if stream else 'whole'}, {'kept' if keeps else 'new'} connections"
        async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits) as client:
            for number in self._numbers():
                body = {"prompt": prompt_of(number), "stream": stream, **options_of(number)}
                self._check(ways, number, await self._completion(client, body))

    async def _completion(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        """From whichever gateway lets us in."""
        ports = random.sample(self._stack.http_ports, 2)
        while True:
            try:
                response = await client.post(f"http://127.0.0.1:{ports[0]}/v1/completions", json=body)
                break
            except httpx.ConnectError:
                self.num_not_let_in += 1
                ports.reverse()
        assert response.status_code == 200, response.text
        if not body["stream"]:
            (choice,) = response.json()["choices"]
            assert choice["finish_reason"] == "length"
            return str(choice["text"])
        data = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        assert data[-1] == "[DONE]", response.text
        choices = [choice for line in data[:-1] for choice in json.loads(line)["choices"]]
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
        return "".join(choice["text"] for choice in choices)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_rolling_restart_of_every_tier_loses_no_request(model_folder: Path, tmp_path: Path, workers: int) -> None:
    async def main(stack: RollingStack) -> None:
        load = Load(stack)
        await load.learn()
        running = asyncio.ensure_future(load.run())
        took: list[str] = []
        for member in stack.members:
            replacing = asyncio.ensure_future(asyncio.to_thread(stack.replace, member))
            await asyncio.wait({replacing, running}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                break
            took.append(f"{member.module} {replacing.result():.1f}")
            before = sum(load.num_ended.values())
            async with asyncio.timeout(60):
                while sum(load.num_ended.values()) < before + 20 and not running.done():
                    await asyncio.sleep(0.05)
        load.stop = True
        async with asyncio.timeout(60):
            await running
        assert len(load.num_ended) == 6 and min(load.num_ended.values()) > 0
        print(f"\n{dict(load.num_ended)}; {load.num_not_let_in} connections not let in")
        print(f"seconds from SIGTERM to exit: {', '.join(took)}")

    with rolling_stack(model_folder, tmp_path, workers) as stack:
        asyncio.run(main(stack))
