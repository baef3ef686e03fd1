"""OpenAI's client for Node against the real stack, in an environment of its own."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from tests.e2e.conftest import Stack
from tests.interop.environments import node_with
from tests.interop.leavers import until_idle

pytestmark = [pytest.mark.model, pytest.mark.extended]

PROGRAM = Path(__file__).parent / "programs" / "openai_node.cjs"
MODEL = "smollm2-135m-instruct"
TIME_LIMIT_S = 240


@pytest.fixture(scope="module")
def told(stack: Stack) -> dict[str, Any]:
    node, folder = node_with("openai-node", "openai@6.49.0")
    command = [node, PROGRAM, folder, f"{stack.http_url}/v1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module")
def python(stack: Stack) -> openai.OpenAI:
    """What the other client is told is told to this one."""
    return openai.OpenAI(base_url=f"{stack.http_url}/v1", api_key="unused", max_retries=0)


def test_chats(told: dict[str, Any], python: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    expected = python.chat.completions.create(model=MODEL, messages=question, temperature=0, max_tokens=8)
    text, finish = expected.choices[0].message.content, expected.choices[0].finish_reason
    assert expected.usage is not None
    counts = {name: getattr(expected.usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    assert (told["chat"]["text"], told["chat"]["finish"], told["chat"]["object"]) == (text, finish, "chat.completion")
    assert counts.items() <= told["chat"]["usage"].items() and told["chat"]["id"].startswith("req-")
    assert (told["stream"]["text"], told["stream"]["finish"]) == (text, finish)
    assert counts.items() <= told["stream"]["usage"].items() and told["stream"]["chunks"] > 3
    assert told["helper"]["text"] == text
    assert "".join(token for token, _, _ in told["logprobs"]) == text
    assert all(logprob <= 0 and num_top == 3 for _, logprob, num_top in told["logprobs"])
    assert told["several"] == told["again"] and len(told["several"]) == 3
    assert "4" not in told["stop"]["message"]["content"]
    assert told["developer"] == told["called"] == 1 and told["parts"] in ("stop", "length") and told["extras"] == 8
    assert told["tools"] in ("stop", "length", "tool_calls") and told["raw"] == [200, "from-node"]


def test_answers_of_a_schema_and_calls_that_must_be_made(told: dict[str, Any]) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Bern", "Paris"]}, "sunny": {"type": "boolean"}},
        "required": ["city", "sunny"],
        "additionalProperties": False,
    }
    found = told["parsed"]["value"]
    jsonschema.validate(found, schema)
    assert told["parsed"]["finish"] == "stop" and found == told["parsedStream"] == told["schema"]
    assert told["text"] == told["chat"]["text"] and told["object"].startswith("{") and told["chosen"] in ("yes", "no")
    assert told["cut"]["kind"] == "LengthFinishReasonError"
    for choice in ("required", "named"):
        assert (told[choice]["finish"], told[choice]["name"]) == ("tool_calls", "get_weather")
        jsonschema.validate(told[choice]["value"], schema)
    assert told["streamedCall"] == told["required"]["value"]


def test_embeddings_penalties_and_usage(told: dict[str, Any]) -> None:
    embeddings = told["embeddings"]
    assert embeddings["count"] == 2 and embeddings["far"] < 1e-5 and embeddings["tokens"] > 0
    plain, penalised = told["penalties"]
    assert plain != penalised and told["bias"][0] != told["bias"][1]
    assert told["details"] == [True, 0]


def test_completions_and_models(told: dict[str, Any], python: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "The sea was"]
    expected = python.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=8)
    assert told["batch"] == [choice.text for choice in expected.choices]
    assert told["completion"] == told["completionStream"] == told["batch"][0]
    text, logprobs = told["echo"]
    assert text.startswith("The capital of France") and logprobs[0] is None and len(logprobs) == 5 and told["ids"]
    assert told["models"] == [MODEL] and told["model"] == "model"


def test_errors(told: dict[str, Any]) -> None:
    errors = told["errors"]
    for name, kind, status, code, param in (
        ("no model", "NotFoundError", 404, "model_not_found", None),
        ("no such model", "NotFoundError", 404, "model_not_found", None),
        ("no messages", "BadRequestError", 400, "invalid_request", "messages"),
        ("temperature", "BadRequestError", 400, "invalid_request", "temperature"),
        ("unknown", "BadRequestError", 400, "unknown_parameter", "nonsense"),
        ("store", "BadRequestError", 400, "unsupported_parameter", "store"),
        ("schema", "BadRequestError", 400, "constraint_invalid", "json_schema"),
        ("image", "BadRequestError", 400, "invalid_request", "messages[0].content[0].type"),
        ("suffix", "BadRequestError", 400, "unsupported_parameter", "suffix"),
        ("best_of", "BadRequestError", 400, "unsupported_parameter", "best_of"),
        ("no path", "NotFoundError", 404, "no_such_path", None),
        ("timeout", "InternalServerError", 504, "deadline_exceeded", None),
        ("streamed error", "BadRequestError", 400, "context_length_exceeded", "max_tokens"),
        ("too long", "BadRequestError", 400, "context_length_exceeded", "prompt"),
    ):
        found = errors[name]
        assert (found["kind"], found["status"], found["code"], found["param"]) == (kind, status, code, param), name


def test_who_leaves_is_cancelled_in_the_engine(told: dict[str, Any], stack: Stack) -> None:
    assert told["left"] == 3
    assert told["aborted"]["kind"] == "APIUserAbortError" and told["timedOut"]["kind"] == "APIConnectionTimeoutError"
    until_idle(stack)
