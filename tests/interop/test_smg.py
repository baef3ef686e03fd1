"""Shepherd Model Gateway, the real one, before a real model tier: OpenAI's client in front, our engine behind."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest

from tests.e2e.reference import Reference
from tests.e2e.tier_processes import end
from tests.interop.environments import python_with
from tokenwire.addresses import free_ports
from tokenwire.v1 import common_pb2, model_pb2, model_pb2_grpc

pytestmark = [pytest.mark.model, pytest.mark.extended]

MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
MAX_TOKENS = 24
START_S = 120


@dataclass(frozen=True)
class Shepherd:
    url: str
    worker: model_pb2_grpc.ModelServiceStub

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60)

    def load(self) -> common_pb2.Load:
        return self.worker.GetLoad(model_pb2.GetLoadRequest()).load

    def until_idle(self) -> None:
        """Wait until the engine computes nothing; at most 10 s."""
        ends_s = time.monotonic() + 10
        while (load := self.load()).running + load.queued:
            assert time.monotonic() < ends_s, load
            time.sleep(0.02)


@contextmanager
def process(command: list[str]) -> Iterator[Path]:
    """A server with its output in a file; ended by its process id."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        environ = {**os.environ, "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environ, start_new_session=True)
        try:
            yield Path(log.name)
        finally:
            end(running)


@pytest.fixture(scope="module")
def shepherd(model_folder: Path) -> Iterator[Shepherd]:
    smg = python_with("smg", "smg==1.13.0", "smg-grpc-proto==0.4.28").with_name("smg")
    worker_port, port, metrics_port = free_ports(3)
    worker = [
        sys.executable, "-m", "model_svc", "--dtype", "float32", "--port", str(worker_port), "--metrics-port", "0",
        "--vllm-engine",
    ]  # fmt: skip
    gateway = [
        str(smg), "launch", "--host", "127.0.0.1", "--port", str(port), "--worker-urls",
        f"grpc://127.0.0.1:{worker_port}", "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port),
        "--log-level", "warn", "--disable-retries",
    ]  # fmt: skip
    with ExitStack() as stack:
        logs = [stack.enter_context(process(worker)), stack.enter_context(process(gateway))]
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{worker_port}"))
        found = Shepherd(f"http://127.0.0.1:{port}", model_pb2_grpc.ModelServiceStub(channel))
        ends_s = time.monotonic() + START_S
        while not serves(found.url):
            assert time.monotonic() < ends_s, "\n".join(log.read_text() for log in logs)
            time.sleep(0.2)
        yield found


def serves(url: str) -> bool:
    try:
        return MODEL in httpx.get(f"{url}/v1/models", timeout=2, trust_env=False).text
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def prompt_ids(reference: Reference) -> list[int]:
    encoded = reference.tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)
    ids: list[int] = encoded["input_ids"]
    return ids


@pytest.fixture(scope="module")
def expected_ids(reference: Reference, prompt_ids: list[int]) -> list[int]:
    return reference.generate(prompt_ids, MAX_TOKENS)


def ask(shepherd: Shepherd, **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": MAX_TOKENS, **options}
    return shepherd.client.chat.completions.create(model=MODEL, messages=QUESTION, **options)  # type: ignore[arg-type]


def test_a_chat_is_what_transformers_says(
    shepherd: Shepherd, reference: Reference, prompt_ids: list[int], expected_ids: list[int]
) -> None:
    answer = ask(shepherd)
    assert answer.choices[0].message.content == reference.text(expected_ids)
    assert answer.choices[0].finish_reason == ("length" if len(expected_ids) == MAX_TOKENS else "stop")
    assert answer.usage.prompt_tokens == len(prompt_ids) and answer.usage.completion_tokens == len(expected_ids)
    again = ask(shepherd)
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_streamed_it_is_the_same(shepherd: Shepherd, reference: Reference, expected_ids: list[int]) -> None:
    chunks = list(ask(shepherd, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == reference.text(expected_ids)
    assert sum(text != "" for text in texts) > 1
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert len(reasons) == 1
    assert chunks[-1].usage.completion_tokens == len(expected_ids)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_work_too(
    shepherd: Shepherd, reference: Reference, expected_ids: list[int], stream: bool
) -> None:
    text = reference.text(expected_ids)
    stop = text.split()[2]
    options = {"stop": [stop], "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    steps = shepherd.load().step
    if stream:
        chunks = [chunk for chunk in ask(shepherd, stream=True, **options) if chunk.choices]
        found = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        answer = ask(shepherd, **options)
        found, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert answer.usage.completion_tokens < MAX_TOKENS
    assert found == text[: text.index(stop)] and reason == "stop"
    shepherd.until_idle()
    assert shepherd.load().step - steps < 100


def test_logprobs(shepherd: Shepherd, reference: Reference, prompt_ids: list[int], expected_ids: list[int]) -> None:
    answer = ask(shepherd, logprobs=True, top_logprobs=3)
    scored = answer.choices[0].logprobs.content
    assert len(scored) == len(expected_ids)
    wanted = reference.logprobs(prompt_ids + expected_ids)[len(prompt_ids) - 1 :]
    for position, (token_id, token) in enumerate(zip(expected_ids, scored, strict=True)):
        assert abs(token.logprob - wanted[position, token_id].item()) < 1e-3
        top = wanted[position].topk(3).values.tolist()
        assert [entry.logprob for entry in token.top_logprobs] == pytest.approx(top, abs=1e-3)


def test_equal_seeds_give_equal_answers(shepherd: Shepherd) -> None:
    one, other = (ask(shepherd, temperature=1.0, seed=11, top_p=0.9, presence_penalty=0.5) for _ in range(2))
    assert one.choices[0].message.content == other.choices[0].message.content
    different = [ask(shepherd, temperature=1.0, seed=seed).choices[0].message.content for seed in range(4)]
    assert len(set(different)) > 1


def test_several_choices(shepherd: Shepherd, reference: Reference, expected_ids: list[int]) -> None:
    answer = ask(shepherd, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.message.content for choice in answer.choices} == {reference.text(expected_ids)}


def test_structured_output(shepherd: Shepherd) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
        "required": ["city", "people"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    answer = ask(shepherd, response_format=form, max_tokens=100, temperature=1.0, seed=1)
    found = json.loads(answer.choices[0].message.content)
    assert set(found) == {"city", "people"} and isinstance(found["people"], int)
    assert answer.choices[0].finish_reason == "stop"


def test_many_at_once(shepherd: Shepherd, reference: Reference, expected_ids: list[int]) -> None:
    streams = [ask(shepherd, stream=True) for _ in range(8)]
    texts = ["".join(c.choices[0].delta.content or "" for c in stream if c.choices) for stream in streams]
    assert texts == [reference.text(expected_ids)] * 8


def test_a_client_that_leaves_is_cancelled_in_the_engine(shepherd: Shepherd) -> None:
    stream = ask(shepherd, stream=True, max_tokens=1500, extra_body={"ignore_eos": True})
    next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
    assert shepherd.load().running == 1
    steps = shepherd.load().step
    stream.close()
    shepherd.until_idle()
    assert shepherd.load().step - steps < 500 and shepherd.load().kv_blocks_used == 0


def test_errors_have_their_status(shepherd: Shepherd) -> None:
    with pytest.raises(openai.BadRequestError, match="do not fit"):
        ask(shepherd, max_tokens=100_000)
    with pytest.raises(openai.BadRequestError, match="nonsense"):
        schema = {"type": "object", "properties": {"a": {"type": "nonsense"}}}
        ask(shepherd, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert ask(shepherd, max_tokens=2).usage.completion_tokens == 2
