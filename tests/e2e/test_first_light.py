"""The main job on the real model: what every way in answers is what transformers' own greedy loop says."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

from tests.e2e.conftest import Stack
from tests.e2e.reference import Reference
from tokenwire.v1 import common_pb2, gateway_pb2, gateway_pb2_grpc, model_pb2, model_pb2_grpc, tokenizer_pb2

pytestmark = pytest.mark.model

QUESTION = "What is the capital of France?"
MAX_TOKENS = 24
PROMPTS = [
    QUESTION,
    "Once upon a time",
    "def fibonacci(n):",
    "The three primary colours are",
    "x",
    "SELECT name FROM users WHERE",
    "Water boils at a temperature of",
    "La capitale de la France est",
    "1 2 3 4 5 6",
    "To be, or not to be, that is",
    "🙂 emoji and ünïcödé",
    "List the planets:\n1. Mercury\n2.",
    " ".join(["word"] * 150),
    "The quick brown fox jumps over the lazy dog. " * 12,
    "import torch\nimport",
    "Q: What is 2 + 2?\nA:",
]


@pytest.fixture(scope="module")
def expected(reference: Reference) -> list[list[int]]:
    return [reference.generate(reference.tokenizer(prompt)["input_ids"], MAX_TOKENS) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def chat_expected(reference: Reference) -> list[int]:
    messages = [{"role": "user", "content": QUESTION}]
    encoded = reference.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return reference.generate(encoded["input_ids"], MAX_TOKENS)


@pytest.fixture(scope="module")
def stub(stack: Stack) -> Iterator[gateway_pb2_grpc.GenerationServiceStub]:
    with grpc.insecure_channel(stack.grpc_target) as channel:
        yield gateway_pb2_grpc.GenerationServiceStub(channel)


def options() -> common_pb2.GenerationOptions:
    return common_pb2.GenerationOptions(
        sampling=common_pb2.SamplingParams(temperature=0.0),
        stop=common_pb2.StopConditions(max_tokens=MAX_TOKENS),
        output=common_pb2.OutputOptions(return_token_ids=True),
    )


def conversation() -> tokenizer_pb2.Conversation:
    return tokenizer_pb2.Conversation(messages=[tokenizer_pb2.ChatMessage(role="user", content=QUESTION)])


def session(stub: Any, requests: list[tokenizer_pb2.TextRequest]) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Token ids and text of each request, by handle, over one Session."""

    def frames() -> Iterator[tokenizer_pb2.SessionRequest]:
        yield tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1))
        submits = [tokenizer_pb2.Submit(handle=i + 1, request=request) for i, request in enumerate(requests)]
        yield tokenizer_pb2.SessionRequest(submits=submits)

    ids: dict[int, list[int]] = {i + 1: [] for i in range(len(requests))}
    texts = dict.fromkeys(ids, "")
    finished: set[int] = set()
    for frame in stub.Session(frames(), timeout=300):
        for handle, text in zip(frame.handles, frame.texts, strict=True):
            texts[handle] += text
        for extras in frame.extras:
            ids[extras.handle] += extras.token_ids
        finished |= {finish.handle for finish in frame.finishes if not finish.HasField("error")}
    assert finished == set(ids)
    return ids, texts


def test_the_chat_answer_is_paris_and_transformers_own(
    stub: Any, stack: Stack, reference: Reference, chat_expected: list[int]
) -> None:
    answer = reference.text(chat_expected)
    assert "Paris" in answer

    request = gateway_pb2.ChatRequest(conversation=conversation(), options=options())
    responses = list(stub.Chat(request, timeout=120))
    assert [token for response in responses for token in response.delta.token_ids] == chat_expected
    assert "".join(response.delta.text for response in responses) == answer

    ids, texts = session(stub, [tokenizer_pb2.TextRequest(conversation=conversation(), options=options())])
    assert (ids[1], texts[1]) == (chat_expected, answer)

    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": MAX_TOKENS}
    reply = httpx.post(f"{stack.http_url}/v1/chat/completions", json=body, timeout=120).json()
    assert reply["choices"][0]["message"]["content"] == answer
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_a_batch_of_sixteen_mixed_prompts_through_grpc(stub: Any, expected: list[list[int]]) -> None:
    prompts = [gateway_pb2.Prompt(text=prompt) for prompt in PROMPTS]
    outputs: list[list[int]] = [[] for _ in PROMPTS]
    finishes: dict[int, common_pb2.Finish] = {}
    for response in stub.Generate(gateway_pb2.GenerateRequest(prompts=prompts, options=options()), timeout=300):
        assert response.index not in finishes
        outputs[response.index] += response.delta.token_ids
        if response.HasField("finish"):
            finishes[response.index] = response.finish
    assert sorted(finishes) == list(range(len(PROMPTS)))
    assert outputs == expected


def test_a_batch_of_sixteen_mixed_prompts_through_a_session(
    stub: Any, reference: Reference, expected: list[list[int]], chat_expected: list[int]
) -> None:
    requests = [tokenizer_pb2.TextRequest(text=prompt, options=options()) for prompt in PROMPTS]
    requests.append(tokenizer_pb2.TextRequest(conversation=conversation(), options=options()))
    ids, texts = session(stub, requests)
    assert list(ids.values()) == [*expected, chat_expected]
    assert list(texts.values()) == [reference.text(tokens) for tokens in [*expected, chat_expected]]


def test_a_batch_of_sixteen_mixed_prompts_through_http(
    stack: Stack, reference: Reference, expected: list[list[int]]
) -> None:
    def complete(prompt: str) -> str:
        body = {"prompt": prompt, "temperature": 0, "max_tokens": MAX_TOKENS}
        return str(httpx.post(f"{stack.http_url}/v1/completions", json=body, timeout=300).json()["choices"][0]["text"])

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert list(pool.map(complete, PROMPTS)) == [reference.text(tokens) for tokens in expected]

    body = {"inputs": PROMPTS, "temperature": 0, "max_tokens": MAX_TOKENS}
    outputs = httpx.post(f"{stack.http_url}/generate", json=body, timeout=300).json()["outputs"]
    assert [output["text"] for output in outputs] == [reference.text(tokens) for tokens in expected]


def test_clients_that_leave_and_deadlines_leave_no_block_in_use(stub: Any, stack: Stack) -> None:
    long = options()
    long.stop.max_tokens = 4000
    long.stop.ignore_eos = True
    leaving = stub.Chat(gateway_pb2.ChatRequest(conversation=conversation(), options=long), timeout=120)
    next(leaving)
    leaving.cancel()
    context = common_pb2.RequestContext(timeout_ms=700)
    late = stub.Chat(gateway_pb2.ChatRequest(conversation=conversation(), options=long, context=context), timeout=120)
    finish = list(late)[-1].finish
    assert finish.reason == common_pb2.FINISH_REASON_DEADLINE
    assert finish.usage.completion_tokens > 0
    with grpc.insecure_channel(stack.model_target) as channel:
        model = model_pb2_grpc.ModelServiceStub(channel)
        deadline_s = time.monotonic() + 30
        while (load := model.GetLoad(model_pb2.GetLoadRequest(), timeout=10).load).kv_blocks_used:
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.05)
        assert (load.running, load.queued, load.kv_blocks_used) == (0, 0, 0)


def test_equal_seeds_give_equal_text_alone_and_in_a_crowd(stub: Any) -> None:
    sampled = options()
    sampled.sampling.temperature = 0.9
    sampled.sampling.top_p = 0.95
    sampled.sampling.seed = 1234
    request = tokenizer_pb2.TextRequest(conversation=conversation(), options=sampled)
    crowd = [tokenizer_pb2.TextRequest(text=prompt, options=options()) for prompt in PROMPTS[:7]]
    alone, _ = session(stub, [request])
    among, _ = session(stub, [*crowd, request])
    assert among[8] == alone[1]
