"""`python -m gateway --workers N`: one port, one set of metrics, and a tier that outlives its workers."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.fakes.tokenizer_tier import FakeTokenizerTier, fake_tokenizer_tier
from tokenwire.addresses import free_ports
from tokenwire.errors import FailedPrecondition
from tokenwire.health import wait_serving
from tokenwire.workers import reserve

CHAT = {"messages": [{"role": "user", "content": "a b c"}]}


class Workers:
    """A running gateway of several workers, as a person sees it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, http_port: int, metrics_port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://127.0.0.1:{http_port}"
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"

    def pids(self) -> set[int]:
        return {child.pid for child in psutil.Process(self.process.pid).children()}

    async def chat(self) -> httpx.Response:
        """One answer on a connection of its own."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            return await client.post(f"{self.url}/v1/chat/completions", json=CHAT)

    async def counted(self, url: str, what: str = r'requests_total\{.*outcome="ok".*') -> float:
        """Finished chats in the metrics there, or the sum of others."""
        async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
            text = (await client.get(url)).text
        found = re.findall(rf"^tokenwire_gateway_{what}\}} (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    async def until_ready(self, number: int) -> None:
        """Wait until the metrics say that so many sessions to tokenizer tiers are ready, of all workers."""
        async with asyncio.timeout(30):
            while await self.counted(self.metrics_url, r'tokenizer_sessions\{state="ready"') != number:
                await asyncio.sleep(0.05)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def gateway_workers(tier: FakeTokenizerTier, *arguments: str) -> AsyncIterator[Workers]:
    port, http_port, metrics_port = free_ports(3)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TOKENWIRE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "--workers", "2", "--tokenizer-targets", tier.target),
        *("--port", str(port), "--http-port", str(http_port), "--metrics-port", str(metrics_port), *arguments),
        env={**clean, "TOKENWIRE_LOG": "json"},
        stderr=asyncio.subprocess.PIPE,
    )
    workers = Workers(process, port, http_port, metrics_port)
    try:
        async with asyncio.timeout(60):
            await wait_serving(f"127.0.0.1:{port}")
            await workers.until_ready(2)  # the tier may know of a session before its worker does
        yield workers
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def test_workers_share_ports_and_metrics_and_are_started_again() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier, gateway_workers(tier) as workers:
            answers = [await workers.chat() for _ in range(20)]
            assert {answer.status_code for answer in answers} == {200}
            first = workers.pids()
            assert len(first) == 2
            assert await workers.counted(workers.metrics_url) == 20
            assert await workers.counted(f"{workers.url}/metrics") == 20
            await workers.until_ready(2)

            victim = first.pop()
            os.kill(victim, signal.SIGKILL)
            await workers.until(lambda: victim not in workers.pids())
            for _ in range(5):
                assert (await workers.chat()).status_code == 200  # the other goes on meanwhile
            await workers.until(lambda: len(workers.pids()) == 2 and len(tier.sessions) >= 3)
            await workers.until_ready(2)  # what the dead one was connected to does not count
            assert await workers.counted(workers.metrics_url) == 25  # what the dead one counted is not lost
            for pid in workers.pids():  # connections are renewed, so that the new one gets its share
                assert psutil.Process(pid).cmdline()[-4:-2] == ["--max-connection-age-s", "300"]

    asyncio.run(main())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_every_worker(number: signal.Signals) -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier, gateway_workers(tier, "--drain-timeout-s", "20") as workers:
            body = {"messages": [{"role": "user", "content": "!step a b"}], "stream": True}
            async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
                streamed = asyncio.ensure_future(client.post(f"{workers.url}/v1/chat/completions", json=body))
                await tier.until(lambda: tier.num_running == 1)
                pids = workers.pids()
                if number is signal.SIGINT:  # a terminal sends it to all of the group
                    for pid in pids:
                        os.kill(pid, number)
                workers.process.send_signal(number)
                async with asyncio.timeout(30):
                    while not streamed.done():
                        tier.step()
                        await asyncio.sleep(0.01)
                    assert (await streamed).text.endswith("data: [DONE]\n\n")
                    _, said = await workers.process.communicate()
            assert workers.process.returncode == 0, said.decode()
            assert not any(psutil.pid_exists(pid) for pid in pids)
            messages = [json.loads(line)["message"] for line in said.decode().splitlines()]
            assert messages.count("stopped") == 3  # two workers and their parent

    asyncio.run(main())


def test_workers_do_not_outlive_a_parent_that_is_killed() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier, gateway_workers(tier) as workers:
            pids = workers.pids()
            workers.process.kill()
            await workers.until(lambda: not any(psutil.pid_exists(pid) for pid in pids))

    asyncio.run(main())


def test_what_no_worker_can_start_with_ends_the_tier(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, "-m", "tokenizer_svc", "--workers", "2", "--port", "0", "--metrics-port", "0"]
    found = subprocess.run(
        [*command, "--model", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 1 and "Traceback" not in found.stderr, found.stderr


def test_a_port_is_held_without_listening_and_refused_when_taken() -> None:
    with reserve("127.0.0.1", 0, "port") as held:
        port = held.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        with socket.create_server(("127.0.0.1", port), reuse_port=True):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(FailedPrecondition, match="--http-port"):
            reserve("127.0.0.1", port, "http_port")
