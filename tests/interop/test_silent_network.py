"""Sessions whose network swallows everything, without an end or a reset, end by their clients' own pings."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.background import in_background
from tests.fakes.loopback import on_loopback
from tests.fakes.proxy import Proxy
from tests.interop.toolchains import ROOT
from tests.waiting import wait_for
from tokenwire.channels import server_options
from tokenwire.conformance.scripted import ScriptedGateway, Seen, add_to
from tokenwire.conformance.scripted_words import Script

pytestmark = pytest.mark.extended
LIMIT_S = 150
"""Far more than pings take, which give up after half a minute, and far less than TCP."""

Command = Sequence[object]


@dataclass
class Behind:
    """A server of one client, and the network before it."""

    proxy: Proxy
    seen: Seen

    @property
    def asked(self) -> bool:
        return any(session.submits for session in self.seen.sessions)


@pytest.fixture
def commands(
    go_programs: Path, node_programs: tuple[Path, Path], java_programs: Path, cpp_programs: Path
) -> dict[str, Command]:
    return {
        "Python": [sys.executable, ROOT / "clients" / "python" / "conformance.py"],
        "Go": [go_programs / "conformance"],
        "Node": [node_programs[0], node_programs[1] / "conformance.js"],
        "Java": [java_programs / "conformance"],
        "C++": [cpp_programs / "conformance"],
    }


@asynccontextmanager
async def servers(names: Sequence[str]) -> AsyncIterator[dict[str, Behind]]:
    """A scripted server behind a proxy for each name."""
    async with AsyncExitStack() as stack:
        behind = {}
        for name in names:
            server, gateway = grpc.aio.server(options=server_options(2**20)), ScriptedGateway(Script())
            add_to(server, gateway)
            address = await stack.enter_async_context(on_loopback(server))
            proxy = await stack.enter_async_context(Proxy(int(address.rpartition(":")[2])))
            behind[name] = Behind(proxy, gateway.seen)
        yield behind


def told_by(process: subprocess.Popen[str]) -> Any:
    """The one line that a program prints."""
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    return json.loads(out)


def test_an_open_request_ends_as_unavailable_in_every_language(commands: dict[str, Command]) -> None:
    with in_background(servers(list(commands))) as behind:
        running = {
            name: subprocess.Popen(
                [*map(str, command), "--case", "session-lost", "--target", behind[name].proxy.target],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for name, command in commands.items()
        }  # fmt: skip
        try:
            wait_for(lambda: all(each.asked for each in behind.values()))
            for each in behind.values():
                each.proxy.held = True
            told = {name: told_by(process) for name, process in running.items()}
        finally:
            for process in running.values():
                process.kill()
                process.communicate()
    assert {name: line["error"]["code"] for name, line in told.items()} == dict.fromkeys(commands, "UNAVAILABLE")
