"""Runs a client program for one case against a scripted server of its own, and reads what it tells.

The program is called with `--case NAME --target HOST:PORT`, and with `--tls-ca FILE` and `--api-key KEY` where a case
says so. It prints JSON, one object a line: an output, the error of a call, or why it skips the case
(docs/conformance.md).
"""

import asyncio
import importlib
import json
import os
import shlex
import signal
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc

from tokenwire.channels import server_options
from tokenwire.conformance.results import CaseFailed, CaseSkipped, expect
from tokenwire.conformance.scripted import ScriptedGateway, Seen, add_to
from tokenwire.conformance.scripted_words import Script
from tokenwire.interceptor import TypedErrors

API_KEY = "tw-conformance-key"
MAX_MESSAGE_BYTES = 16 * 2**20
KILLED_S = 2.0
"""How long what was killed may take to be gone."""
CALLS_END_S = 2.0
"""How long the server may take to hear that the program's calls have ended."""


@dataclass
class Told:
    """What a program printed."""

    outputs: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    """By request (or prompt) and choice."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    """Of calls as a whole."""

    def output(self, index: int, choice: int = 0) -> dict[str, Any]:
        """One output. Raises CaseFailed where it was not told."""
        expect((index, choice) in self.outputs, f"the program told of no output {index}, choice {choice}")
        return self.outputs[index, choice]

    @property
    def error(self) -> dict[str, Any]:
        """The error of the only call. Raises CaseFailed."""
        expect(len(self.errors) == 1, f"the program told of {len(self.errors)} errors of calls, not of one")
        return self.errors[0]

    def expect_texts(self, *texts: str) -> None:
        """Raise CaseFailed unless these are the outputs' texts, choice 0 of each."""
        for index, text in enumerate(texts):
            found = self.output(index).get("text")
            expect(found == text, f"output {index} was told as {found!r}, sent was {text!r}")
        expect(len(self.outputs) == len(texts), f"{len(self.outputs)} outputs were told, {len(texts)} were asked for")


class ClientProgram:
    """A command, and how long it may take for a case."""

    def __init__(self, command: str, timeout_s: float) -> None:
        self._command = shlex.split(command)
        self._timeout_s = timeout_s

    async def run(
        self, case: str, script: Script | None = None, *, tls: bool = False, key: bool = False
    ) -> tuple[Seen, Told]:
        """Drive it through a case, with TLS and an API key where it is to use them.

        Raises CaseFailed for what the contract forbids, CaseSkipped where it says so.
        """
        with tempfile.TemporaryDirectory() as folder:
            gateway = ScriptedGateway(script or Script(), API_KEY if key else "")
            server = grpc.aio.server(interceptors=[TypedErrors()], options=server_options(MAX_MESSAGE_BYTES))
            add_to(server, gateway)
            arguments = ["--api-key", API_KEY] if key else []
            if tls:
                credentials, authority = certificate_in(Path(folder))
                port = server.add_secure_port("127.0.0.1:0", credentials)
                arguments += ["--tls-ca", str(authority)]
            else:
                port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            try:
                lines = await self._call("--case", case, "--target", f"127.0.0.1:{port}", *arguments)
                with suppress(TimeoutError):
                    async with asyncio.timeout(CALLS_END_S):
                        await gateway.seen.calls_ended()
            finally:
                gateway.seen.over = True
                await server.stop(None)
        told = told_of(lines)
        expect(not gateway.seen.faults, "; ".join(gateway.seen.faults))
        return gateway.seen, told

    async def _call(self, *arguments: str) -> list[str]:
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, *arguments, stdout=pipe, stderr=pipe, start_new_session=True
            )
        except OSError as error:
            raise CaseFailed(f"{self._command[0]} cannot be run: {error.strerror}") from None
        talking = asyncio.ensure_future(process.communicate())
        try:
            await asyncio.wait({talking}, timeout=self._timeout_s)
            if not talking.done():
                ended = process.returncode is not None
                kill_group(process.pid)
                await asyncio.wait({talking}, timeout=KILLED_S)
                did = "left something behind that held its output open for" if ended else "took"
                said = last_words(talking.result()[1]) if talking.done() else ""
                raise CaseFailed(f"the program {did} longer than {self._timeout_s:g} s{said}")
        finally:
            if not talking.done():
                kill_group(process.pid)
                talking.cancel()
        out, err = talking.result()
        expect(process.returncode == 0, f"the program ended with exit status {process.returncode}{last_words(err)}")
        return out.decode(errors="replace").splitlines()


def kill_group(leader: int) -> None:
    """End a process and those it started, as far as they are there."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def last_words(stderr: bytes) -> str:
    """The end of what a program said, for messages."""
    said = stderr.decode(errors="replace").strip()
    return f": {said[-400:]}" if said else ""


def told_of(lines: list[str]) -> Told:
    """What a program's lines say. Raises CaseFailed for what cannot be read, CaseSkipped for a skip."""
    told = Told()
    for line in filter(str.strip, lines):
        try:
            value = json.loads(line)
        except ValueError:
            raise CaseFailed(f"a line of the program's output is not JSON: {line[:200]!r}") from None
        if not isinstance(value, dict):
            raise CaseFailed(f"a line of the program's output is not an object: {line[:200]!r}")
        if "skip" in value:
            expect(isinstance(value["skip"], str), f"a line's skip is not a text: {line[:200]!r}")
            raise CaseSkipped(value["skip"])
        if "output" in value:
            key = (value["output"], value.get("choice", 0))
            expect(all(type(number) is int for number in key), f"output or choice is not a number: {line[:200]!r}")
            expect(key not in told.outputs, f"output {key} was told twice")
            told.outputs[key] = value
        elif "error" in value:
            told.errors.append(value["error"])
        else:
            raise CaseFailed(f"a line is neither an output, an error nor a skip: {line[:200]!r}")
    return told


def certificate_in(folder: Path) -> tuple[grpc.ServerCredentials, Path]:
    """A certificate for the loopback, and the file of its CA. Raises CaseSkipped where none can be made."""
    if find_spec("cryptography") is None:
        raise CaseSkipped("making a certificate needs the package cryptography: pip install 'tokenwire[certs]'")
    authority: Any = importlib.import_module("tokenwire.development_ca").DevelopmentCa.make(folder)
    path: Path = authority.issue("gateway", names=("localhost", "127.0.0.1"))
    pair = (path.with_name("gateway-key.pem").read_bytes(), path.read_bytes())
    return grpc.ssl_server_credentials([pair]), folder / "ca.pem"
