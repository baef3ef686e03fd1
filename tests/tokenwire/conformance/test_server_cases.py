"""The kit against a right server, which passes, and against servers that do one thing wrong, which do not."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.fakes.background import in_background
from tests.fakes.certificates import Certificates
from tests.fakes.faulty_gateway import OTHER_FAULTS, SESSION_FAULTS, faulty_gateway
from tests.fakes.identities import Callers
from tests.fakes.tokenizers_trained import write_folder
from tests.fakes.whole_stack import WholeStack, whole_stack
from tokenwire.cli.main import cli
from tokenwire.conformance.results import Case, CaseFailed, Result, UnknownCase, chosen, expect, run_case
from tokenwire.conformance.server_run import SERVER_CASES, run_server
from tokenwire.errors import FailedPrecondition, Unavailable

VOCAB_SIZE = 439
"""That of the small tokenizer: the mock engine draws no id that it does not have."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("trained") / "tiny-model")


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[WholeStack]:
    with in_background(whole_stack(folder, mock_step_ms=2.0, mock_vocab_size=VOCAB_SIZE)) as running:
        yield running


def results(target: str, *names: str, timeout_s: float = 20.0) -> dict[str, Result]:
    async def main() -> dict[str, Result]:
        return {result.name: result async for result in run_server(target, names=names, timeout_s=timeout_s)}

    return asyncio.run(main())


def test_this_projects_server_passes(stack: WholeStack) -> None:
    found = results(stack.gateway.grpc_target)
    assert [name for name in found] == [case.name for case in SERVER_CASES]
    assert {name: result.reason for name, result in found.items() if result.outcome == "fail"} == {}
    assert [name for name, result in found.items() if result.outcome == "skip"] == ["auth.refused"]


def test_as_many_requests_as_hello_says_are_taken(folder: Path) -> None:
    model = {"max_batch_size": 8, "max_queued_requests": 8, "mock_step_ms": 1.0, "mock_vocab_size": VOCAB_SIZE}
    with in_background(whole_stack(folder, tokenizer={"max_held_requests": 16}, **model)) as running:
        (result,) = results(running.gateway.grpc_target, "session.max-requests").values()
    assert (result.outcome, result.reason) == ("pass", "")


def test_over_tls_with_a_key_and_as_json(folder: Path, tmp_path: Path) -> None:
    callers, certificates = Callers.write(tmp_path / "identities.json"), Certificates(tmp_path / "certs")
    gateway = {"identity_file": str(callers.path), "tls": certificates.client(), **certificates.server()}
    with in_background(whole_stack(folder, gateway=gateway, mock_step_ms=2.0, mock_vocab_size=VOCAB_SIZE)) as running:
        arguments = ["--target", running.gateway.grpc_target, "--tls-ca", certificates.ca]
        arguments += ["--api-key", callers.keys["alice"], "--json", "--case", "auth", "--case", "session.hello"]
        run = CliRunner().invoke(cli, ["conformance", *arguments])
    lines = [json.loads(line) for line in run.output.splitlines()]
    assert run.exit_code == 0, run.output
    assert [(line["name"], line["outcome"]) for line in lines] == [("auth.refused", "pass"), ("session.hello", "pass")]
    assert all(line["shows"] and line["reason"] == "" and line["seconds"] >= 0 for line in lines)


@pytest.mark.parametrize(
    ("fault", "case"), [*((name, case) for name, (_, case) in SESSION_FAULTS.items()), *OTHER_FAULTS.items()]
)
def test_what_a_server_does_wrong_is_seen(stack: WholeStack, fault: str, case: str) -> None:
    async def main() -> list[Result]:
        async with faulty_gateway(stack.gateway.grpc_target, fault) as target:
            return [result async for result in run_server(target, names=[case], timeout_s=3.0)]

    (result,) = asyncio.run(main())
    assert result.outcome == "fail" and result.reason


def test_a_right_server_behind_the_same_proxy_passes(stack: WholeStack) -> None:
    async def main() -> set[str]:
        async with faulty_gateway(stack.gateway.grpc_target, "none") as target:
            names = sorted({case for _, case in SESSION_FAULTS.values()} | set(OTHER_FAULTS.values()))
            return {result.outcome async for result in run_server(target, names=names)}

    assert asyncio.run(main()) == {"pass"}


def test_exit_statuses_and_what_is_shown(stack: WholeStack) -> None:
    run = CliRunner().invoke(cli, ["conformance", "--target", stack.gateway.grpc_target, "--case", "auth"])
    assert run.exit_code == 0
    assert run.output == "skip  auth.refused: no --api-key was given\n0 passed, 0 failed, 1 skipped\n"

    async def main() -> str:
        async with faulty_gateway(stack.gateway.grpc_target, "wrong_code") as target:
            arguments = ["conformance", "--target", target, "--case", "generate.bad-field"]
            run = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
            assert run.exit_code == 1
            return run.output

    shown = asyncio.run(main())
    assert shown.startswith("FAIL  generate.bad-field: the answer was INTERNAL") and "1 failed" in shown
    run = CliRunner().invoke(cli, ["conformance", "--case", "nonsense"])
    assert run.exit_code == 2 and "no case 'nonsense'" in run.output
    run = CliRunner().invoke(cli, ["conformance", "--list", "--json"])
    assert [json.loads(line)["name"] for line in run.output.splitlines()] == [case.name for case in SERVER_CASES]


def test_servers_that_cannot_be_asked(stack: WholeStack) -> None:
    with pytest.raises(Unavailable, match=r"nothing answers at 127\.0\.0\.1:1"):
        results("127.0.0.1:1")

    with pytest.raises(FailedPrecondition, match=r"is no gateway.*no tokenwire\.v1\.GenerationService"):
        results(stack.tokenizer.target)

    async def main() -> None:
        async for _ in run_server(stack.gateway.grpc_target, model="another"):
            pass

    with pytest.raises(FailedPrecondition, match="no model another"):
        asyncio.run(main())


def test_names_and_outcomes() -> None:
    async def fails(_: None) -> None:
        expect(False, "seen")

    async def hangs(_: None) -> None:
        await asyncio.Event().wait()

    async def reads(_: None) -> None:
        json.loads("not JSON")

    async def main() -> None:
        odd = (await run_case(Case("a.d", "D.", reads), None, 1)).reason
        assert odd.startswith("what came cannot be read: JSONDecodeError: Expecting value")
        failed, late = Case("a.b", "A.", fails), Case("a.c", "C.", hangs)
        assert (await run_case(failed, None, 1)).reason == "seen"
        assert "nothing more came within 0.01 s" in (await run_case(late, None, 0.01)).reason
        assert chosen([failed, late], ["a"]) == [failed, late] and chosen([failed, late], ["a.c"]) == [late]
        assert chosen([failed, late], []) == [failed, late]
        with pytest.raises(UnknownCase, match="no case 'a.d'"):
            chosen([failed, late], ["a.b", "a.d"])
        with pytest.raises(CaseFailed):
            await fails(None)

    asyncio.run(main())
    names = [case.name for case in SERVER_CASES]
    assert len(set(names)) == len(names)
