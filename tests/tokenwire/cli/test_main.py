"""The commands that talk with a gateway, run as click runs them, against a fake gateway."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.fakes.gateway import MODEL, FakeGateway, running_gateway
from tokenwire.cli.main import cli
from tokenwire.version import __version__


@pytest.fixture(scope="module")
def gateway() -> Iterator[FakeGateway]:
    with running_gateway() as fake:
        yield fake


@pytest.fixture
def run(gateway: FakeGateway) -> Any:
    gateway.requests.clear()

    def run_cli(*arguments: str, input: str = "") -> Result:
        return CliRunner(env={"TOKENWIRE_TARGET": gateway.target}).invoke(cli, arguments, input=input)

    return run_cli


def test_one_prompt_streams(run: Any) -> None:
    result = run("generate", "to be", "--stats")
    assert (result.exit_code, result.stdout) == (0, "to be\n")
    assert result.stderr.startswith("2 tokens, first after ")


def test_several_prompts_are_told_apart(run: Any) -> None:
    result = run("generate", "a b", "c")
    assert result.stdout == "--- prompt 0, choice 0: length\na b\n--- prompt 1, choice 0: length\nc\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--max-tokens", "99999999999", "hi"],
        ["generate", "--top-k", "4294967296", "hi"],
        ["generate", "--timeout", "1e30", "hi"],
        ["generate", "--timeout", "inf", "hi"],
        ["generate", "\udcff"],
        ["chat", "--timeout", "nan", "hi"],
        ["health", "--timeout", "inf"],
    ],
)
def test_what_cannot_be_sent_is_one_line_and_no_traceback(run: Any, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize("word", ["/quit", "/exit"])
def test_a_conversation_is_left_by_a_word(run: Any, gateway: FakeGateway, word: str) -> None:
    result = run("chat", input=f"one\n{word}\ntwo\n")
    assert (result.exit_code, result.stderr) == (0, "")
    assert [r.conversation.messages[-1].content for r in gateway.requests if hasattr(r, "conversation")] == ["one"]


def test_json_has_everything(run: Any) -> None:
    first, lost = json.loads(run("generate", "--json", "--max-tokens", "1", "a b", "lost").stdout)["outputs"]
    assert first == {
        "index": 0, "choice": 0, "text": "a", "finish_reason": "length", "prompt_tokens": 2, "cached_tokens": 0,
        "completion_tokens": 1, "token_ids": [0],
    }  # fmt: skip
    assert lost["error"] == {"reason": "MODEL_LOST", "message": "the model tier was lost"}


def test_json_shows_log_probabilities_when_asked_for(run: Any) -> None:
    (output,) = json.loads(run("generate", "--json", "--logprobs", "1", "a b").stdout)["outputs"]
    assert output["logprobs"] == [
        {
            "token_id": i, "text": text, "logprob": -0.25 - i, "text_offset": 0,
            "top": [{"token_id": i, "text": text, "logprob": -0.25}],
        }
        for i, text in enumerate(["a", " b"])
    ]  # fmt: skip
    (answer,) = json.loads(run("chat", "--json", "--logprobs", "0", "a").stdout)["outputs"]
    assert [token["top"] for token in answer["logprobs"]] == [[]]


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_log_probabilities_that_would_not_be_shown_are_refused(run: Any, command: str) -> None:
    result = run(command, "--logprobs", "1", "a")
    assert result.exit_code == 2 and "--logprobs needs --json" in result.stderr


def test_penalties_and_min_tokens_reach_the_gateway(run: Any, gateway: FakeGateway) -> None:
    penalties = ("--repetition-penalty", "1.5", "--presence-penalty", "0", "--frequency-penalty", "-0.5")
    for command in ("generate", "chat"):
        assert run(command, "a", *penalties, "--min-tokens", "2").exit_code == 0
    for request in gateway.requests:
        sampling = request.options.sampling
        assert (sampling.repetition_penalty, sampling.frequency_penalty) == (1.5, -0.5)
        assert sampling.HasField("presence_penalty") and request.options.stop.min_tokens == 2


def test_options_reach_the_gateway_and_absent_ones_do_not(run: Any, gateway: FakeGateway) -> None:
    run("generate", "a", "--temperature", "0", "--seed", "3", "--stop", "x", "--stop", "y", "--model", MODEL)
    (request,) = gateway.requests
    assert request.options.sampling.HasField("temperature")
    assert (request.options.sampling.seed, list(request.options.stop.stop_strings)) == (3, ["x", "y"])
    assert not request.options.sampling.HasField("top_p")
    assert not request.options.stop.HasField("max_tokens")
    assert request.model == MODEL


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "overload"], "the queue is full (try again in 1.5 s)"),
        (["generate", "lost"], "the model tier was lost"),
        (["generate", "deadline"], "the time ran out after 1 tokens"),
        (["generate", "a", "lost"], "the model tier was lost"),
        (["generate", "a", "--temperature", "-1"], "options.sampling.temperature: -1.0 is not allowed"),
        (["tokenize", "a", "--model", "other"], "model 'other' is not served; allowed: words"),
        (["chat", "bug"], "failed: RuntimeError"),
        (["chat", "hi", "--target", "127.0.0.1:1"], "nothing answers at 127.0.0.1:1: start it with `tokenwire up`"),
    ],
)
def test_errors_are_one_line_and_status_1(run: Any, arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_what_came_before_an_error_is_shown(run: Any) -> None:
    assert run("generate", "lost").stdout == "lost\n"


def test_a_prompt_may_come_from_standard_input(run: Any) -> None:
    assert run("generate", "-", input="from a pipe").stdout == "from a pipe\n"
    assert run("chat", "-", input="from a pipe").stdout == "from a pipe\n"


def test_tokens_there_and_back(run: Any) -> None:
    assert run("tokenize", "ab", "c").stdout == "97 98\n99\n"
    assert json.loads(run("tokenize", "--json", "ab").stdout) == {"token_ids": [[97, 98]]}
    assert json.loads(run("tokenize", "--json", "--offsets", "ab").stdout) == {
        "token_ids": [[97, 98]], "starts": [[]], "ends": [[]],
    }  # fmt: skip
    assert run("tokenize", "--offsets", "ab").exit_code == 2
    assert run("count-tokens", "ab", "c").stdout == "2\n1\n"
    assert json.loads(run("count-tokens", "--json", "--chat", "ab").stdout) == {"counts": [2]}
    assert run("detokenize", "97", "98").stdout == "ab\n"
    assert run("detokenize", "--", "-1").exit_code == 2


def test_a_conversation_remembers_resets_and_takes_a_system_message(run: Any, gateway: FakeGateway) -> None:
    result = run("chat", "--system", "be brief", input="one\ntwo\n/reset\nthree\n/system be long\nfour\n")
    assert result.exit_code == 0
    conversations = [
        [(m.role, m.content) for m in request.conversation.messages]
        for request in gateway.requests
        if hasattr(request, "conversation")
    ]
    brief = ("system", "be brief")
    assert conversations == [
        [brief, ("user", "one")],
        [brief, ("user", "one"), ("assistant", "one"), ("user", "two")],
        [brief, ("user", "three")],
        [("system", "be long"), ("user", "four")],
    ]


def test_an_error_ends_its_turn_alone(run: Any, gateway: FakeGateway) -> None:
    result = run("chat", input="overload\n/nope\nfine\n")
    assert result.exit_code == 0
    assert "the queue is full" in result.stderr
    assert "/nope is no command" in result.stderr
    assert [m.content for m in gateway.requests[-1].conversation.messages] == ["fine"]


def test_a_conversation_without_a_gateway_does_not_begin() -> None:
    result = CliRunner().invoke(cli, ["chat", "--target", "127.0.0.1:1"], input="hello\n")
    assert result.exit_code == 1
    assert "tokenwire up" in result.stderr


def test_health_is_the_exit_status(run: Any) -> None:
    result = run("health")
    assert (result.exit_code, result.stdout) == (0, "SERVING\n")
    assert run("health", "--target", "127.0.0.1:1").exit_code == 1
    with running_gateway(serving=False) as idle:
        result = run("health", "--target", idle.target)
    assert (result.exit_code, result.stdout) == (1, "NOT_SERVING\n")


def test_it_runs_as_a_program() -> None:
    result = subprocess.run([sys.executable, "-m", "tokenwire.cli.main", "--version"], capture_output=True, text=True)
    assert result.stdout == f"tokenwire, version {__version__}\n"


def test_reasoning_and_calls_are_shown(run: Any) -> None:
    result = run("chat", "think so then")
    assert (result.exit_code, result.stdout) == (0, "think\n so then\n(calls then {})\n")
    (output,) = json.loads(run("chat", "think so then", "--json").stdout)["outputs"]
    assert (output["reasoning"], output["text"]) == ("think", " so then")
    assert output["tool_calls"] == [{"id": "call_1", "name": "then", "arguments": "{}"}]


def test_an_answer_steers_no_terminal(gateway: FakeGateway) -> None:
    hostile = "red\x1b[31m title\x1b]0;x\x07 clear\x9b2J"
    master, slave = os.openpty()
    command = [sys.executable, "-m", "tokenwire.cli.main", "chat", "--target", gateway.target, hostile]
    with os.fdopen(slave, "wb") as terminal, os.fdopen(master, "rb") as screen:
        subprocess.run(command, stdout=terminal, stderr=subprocess.STDOUT, timeout=60, check=True)
        said = os.read(screen.fileno(), 65536).decode()
    assert r"red\x1b[31m title\x1b]0;x\x07 clear\x9b2J" in said
    assert "\x1b" not in said and "\x9b" not in said
