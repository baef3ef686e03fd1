"""What every client in another language must do: the conformance kit, the test vectors, and its example."""

import asyncio
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.conftest import Stack
from tests.fakes.background import in_background
from tests.fakes.certificates import Certificates
from tests.fakes.identities import Callers
from tests.fakes.tokenizers_trained import write_folder
from tests.fakes.whole_stack import whole_stack
from tests.interop.leavers import until_idle
from tokenwire.client import Client
from tokenwire.conformance.client_run import CLIENT_CASES, run_client
from tokenwire.conformance.results import Result

Command = Sequence[object]
TIME_LIMIT_S = 120


def check_conformance(command: Command) -> None:
    """Every case passes; none is skipped."""

    async def main() -> list[Result]:
        return [result async for result in run_client(shlex.join(map(str, command)))]

    found = asyncio.run(main())
    wrong = [(result.name, result.outcome, result.reason) for result in found if result.outcome != "pass"]
    assert not wrong, wrong
    assert [result.name for result in found] == [case.name for case in CLIENT_CASES]


def example(command: Command) -> list[str]:
    """What a client's example prints."""
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=TIME_LIMIT_S)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()


def check_example(command: Command, stack: Stack) -> None:
    """The example against the real stack says what the Python client says, and leaves nothing running."""
    printed = "\n".join(example([*command, "--target", stack.grpc_target]))
    with Client(stack.grpc_target) as client:
        text = client.generate("Once upon a time", temperature=0, max_tokens=16).text()
        answer = client.chat("What is the capital of France?", temperature=0, max_tokens=16).text()
    assert f"generate:{text} (FINISH_REASON_LENGTH, 16 tokens)\n" in printed
    assert f"chat: {answer}\n" in printed
    check_rest(printed)
    until_idle(stack)


def check_key_stays(command: Command) -> None:
    """A key does not go to another machine without TLS."""
    words = [*map(str, command), "--target", "gateway.example:50051", "--api-key", "tw-key"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=TIME_LIMIT_S)
    assert run.returncode != 0 and "gateway.example:50051 unencrypted" in run.stdout + run.stderr


def check_bad_keys(command: Command) -> None:
    """A key that no header may hold is refused before anything is sent, and not shown."""
    for key in ("tw-key\n", "tw-key\x7f"):
        words = [*map(str, command), "--target", "127.0.0.1:1", "--api-key", key]
        run = subprocess.run(words, capture_output=True, text=True, timeout=TIME_LIMIT_S)
        said = run.stdout + run.stderr
        assert run.returncode != 0 and "visible ASCII" in said and "tw-key" not in said, said


def check_rest(printed: str) -> None:
    """What does not depend on the model."""
    assert "session: 20 chapters, the story ended with FINISH_REASON_CANCELLED\n" in printed
    assert "deadline: FINISH_REASON_DEADLINE\n" in printed or "deadline: DEADLINE_EXCEEDED\n" in printed
    last = printed.rstrip("\n").splitlines()[-1]
    assert last.startswith("error: ") and "INVALID_REQUEST" in last and "options.sampling.temperature" in last


@contextmanager
def secured_stack(folder: Path) -> Iterator[list[str]]:
    """A whole stack with the mock engine behind TLS and API keys, as arguments of a client's program."""
    callers, certificates = Callers.write(folder / "identities.json"), Certificates(folder / "certs")
    gateway = {"identity_file": str(callers.path), "tls": certificates.client(), **certificates.server()}
    model = write_folder(folder / "tiny-model")
    with in_background(whole_stack(model, gateway=gateway, mock_step_ms=2.0)) as stack:
        yield [
            "--target", stack.gateway.grpc_target, "--tls-ca", certificates.ca, "--api-key", callers.keys["alice"]
        ]  # fmt: skip


def check_secured(command: Command, folder: Path) -> None:
    """The example over TLS with an API key, which goes nowhere else."""
    check_key_stays(command)
    check_bad_keys(command)
    with secured_stack(folder) as arguments:
        check_rest("\n".join(example([*command, *arguments])))
