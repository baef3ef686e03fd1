"""The Python client's program passes every case; programs that do one thing wrong are found out."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from tests.fakes import faulty_client
from tests.waiting import wait_for
from tokenwire.cli.main import cli
from tokenwire.conformance.client_run import CLIENT_CASES, run_client
from tokenwire.conformance.results import Result

ROOT = Path(__file__).parents[3]
PROGRAM = f"{sys.executable} {ROOT / 'clients' / 'python' / 'conformance.py'}"
FAULTY = f"{sys.executable} {faulty_client.__file__}"


def results(command: str, *names: str, timeout_s: float = 30.0) -> list[Result]:
    async def main() -> list[Result]:
        return [result async for result in run_client(command, names=names, timeout_s=timeout_s)]

    return asyncio.run(main())


def test_the_python_client_passes() -> None:
    found = results(PROGRAM)
    assert [(result.name, result.outcome, result.reason) for result in found] == [
        (case.name, "pass", "") for case in CLIENT_CASES
    ]


@pytest.mark.parametrize("fault", faulty_client.FAULTS)
def test_what_a_client_does_wrong_is_seen(fault: str) -> None:
    case, _, said = faulty_client.FAULTS[fault]
    (result,) = results(f"{FAULTY} {fault}", case, timeout_s=3.0 if said == "took longer" else 30.0)
    assert result.outcome == "fail" and said in result.reason


def test_a_program_that_never_connects_fails_every_case() -> None:
    found = results(f"{FAULTY} canned")
    assert {result.name: result.reason for result in found if not re.match("0 (calls|sessions) ", result.reason)} == {}
    assert {result.outcome for result in found} == {"fail"}


@pytest.mark.parametrize("name", faulty_client.RIGHT)
def test_what_is_allowed_passes(name: str) -> None:
    case, _ = faulty_client.RIGHT[name]
    (result,) = results(f"{FAULTY} {name}", case)
    assert (result.outcome, result.reason) == ("pass", "")


def test_skips_commands_and_exit_statuses() -> None:
    (skipped,) = results('sh -c \'echo {\\"skip\\":\\"no\\ TLS\\ here\\"}\'', "tls")
    assert (skipped.outcome, skipped.reason) == ("skip", "no TLS here")
    skips = 'sh -c \'echo {\\"skip\\":\\"no\\"}\''
    for names, status in ((["tls", "key"], 0), (["tls", "generate"], 1), (["session-many"], 1)):
        cases = [word for name in names for word in ("--case", name)]
        run = CliRunner().invoke(cli, ["conformance", "--client", skips, *cases])
        assert run.exit_code == status and f"0 failed, {len(names)} skipped" in run.output
        assert ("nothing was tried" in run.output) == bool(status)
    run = CliRunner().invoke(cli, ["conformance", "--client", "no-such-program", "--case", "generate"])
    assert run.exit_code == 1 and "no-such-program cannot be run" in run.output
    for option in (("--target", "127.0.0.1:1"), ("--api-key", "k"), ("--model", "m"), ("--tls-ca", "ca.pem")):
        run = CliRunner().invoke(cli, ["conformance", "--client", "x", *option])
        assert run.exit_code == 2 and f"{option[0]} is of a server to try" in run.output
    run = CliRunner(env={"TOKENWIRE_TARGET": "127.0.0.1:1"}).invoke(cli, ["conformance", "--client", "x", "--list"])
    assert run.exit_code == 0, "what the environment says is for all commands"
    for command in (" ", "'x"):
        run = CliRunner().invoke(cli, ["conformance", "--client", command])
        assert run.exit_code == 2 and "--client" in run.output
    run = CliRunner().invoke(cli, ["conformance", "--client", "x", "--list"])
    assert [line.split()[0] for line in run.output.splitlines()] == [case.name for case in CLIENT_CASES]


def test_what_a_program_started_is_ended_with_it_and_the_reason_is_the_right_one(tmp_path: Path) -> None:
    program = tmp_path / "program"
    for text, said in (
        ("wait", "the program took longer than 1 s: begun"),
        ("", "the program left something behind that held its output open for longer than 1 s: begun"),
    ):
        program.write_text(f"#!/bin/sh\necho begun >&2\nsleep 60 &\necho $! > {tmp_path}/pid\n{text}\n")
        program.chmod(0o755)
        (result,) = results(str(program), "generate", timeout_s=1.0)
        assert (result.outcome, result.reason) == ("fail", said)
        started = int((tmp_path / "pid").read_text())
        with suppress(psutil.NoSuchProcess):
            while psutil.Process(started).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)


def test_a_kit_that_is_told_to_end_ends_the_program_it_drives(tmp_path: Path) -> None:
    program, begun = tmp_path / "program", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\necho $$ > {begun}.new\nmv {begun}.new {begun}\nsleep 60\n")
    program.chmod(0o755)
    command = [sys.executable, "-m", "tokenwire.cli.main", "conformance", "--client", str(program)]
    kit = subprocess.Popen(command, cwd=ROOT)
    wait_for(begun.exists)
    kit.terminate()
    assert kit.wait(30) == 128 + signal.SIGTERM
    driven = int(begun.read_text())
    wait_for(lambda: not psutil.pid_exists(driven))


def test_the_page_has_every_case_as_the_kit_has_it() -> None:
    page = (ROOT / "docs" / "conformance.md").read_text()
    rows = re.findall(r"^\| `([\w.-]+)` \| (.+?) \|", page, re.MULTILINE)
    assert rows == [(case.name, case.shows) for case in CLIENT_CASES]
