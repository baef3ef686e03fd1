"""OpenAI's Python client against the real stack: what a program written for OpenAI's API gets."""

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, Field

from tests.e2e.conftest import Stack
from tests.interop.leavers import until_idle

pytestmark = pytest.mark.model

MODEL = "smollm2-135m-instruct"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.http_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def greedy(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=8)
    return answer.choices[0].message.content or ""


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    asked = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 8, **fields}
    return client.chat.completions.create(**asked)


def complete(client: openai.OpenAI, prompt: Any, **fields: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, **{"temperature": 0, "max_tokens": 8, **fields})


def test_a_chat(client: openai.OpenAI) -> None:
    answer = chat(client, user="me", metadata={"a": "b"}, store=False, service_tier="auto", safety_identifier="x")
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.message.refusal is None
    assert choice.finish_reason in ("stop", "length") and choice.logprobs is None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.system_fingerprint.startswith("fp_") and answer.service_tier == "default"
    assert answer._request_id.startswith("req-")


def test_a_streamed_chat_is_the_same_text(client: openai.OpenAI, greedy: str) -> None:
    chunks: list[ChatCompletionChunk] = list(chat(client, stream=True, stream_options={"include_usage": True}))
    *others, last = chunks
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens <= 8
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in others)
    assert others[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in others) == greedy
    assert [chunk.choices[0].finish_reason for chunk in others][:-1] == [None] * (len(others) - 1)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_the_helpers_of_the_client(client: openai.OpenAI, greedy: str) -> None:
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, temperature=0, max_tokens=8) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        assert "".join(deltas) == stream.get_final_completion().choices[0].message.content == greedy


def test_logprobs_of_a_chat(client: openai.OpenAI, greedy: str) -> None:
    logprobs = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert "".join(bytes(each.bytes).decode() for each in logprobs) == greedy
    for each in logprobs:
        assert len(each.top_logprobs) == 3 and each.logprob == each.top_logprobs[0].logprob <= 0
    streamed = [chunk.choices[0].logprobs for chunk in chat(client, logprobs=True, top_logprobs=3, stream=True)]
    found = [each for logprobs in streamed if logprobs is not None for each in logprobs.content]
    assert [each.token for each in found] == [each.token for each in logprobs]
    assert [each.top_logprobs for each in found] == [each.top_logprobs for each in logprobs]


def test_choices_and_seeds(client: openai.OpenAI) -> None:
    texts = [
        [choice.message.content for choice in chat(client, n=3, temperature=1.2, seed=seed).choices]
        for seed in (11, 11, -11)
    ]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) > 1
    indices = {chunk.choices[0].index for chunk in chat(client, n=3, temperature=1.2, seed=11, stream=True)}
    assert indices == {0, 1, 2}


def test_where_an_answer_ends(client: openai.OpenAI, greedy: str) -> None:
    word = greedy.split()[2]
    stopped = chat(client, stop=[word, "never"]).choices[0]
    assert stopped.message.content == greedy[: greedy.index(word)] and stopped.finish_reason == "stop"
    assert chat(client, max_tokens=openai.NOT_GIVEN, max_completion_tokens=3).usage.completion_tokens == 3
    extra = {"ignore_eos": True, "min_tokens": 8, "top_k": 1, "repetition_penalty": 1.1, "priority": 5, "timeout": 60}
    assert chat(client, temperature=1, extra_body=extra).usage.completion_tokens == 8


def test_what_moves_the_choice_of_tokens(client: openai.OpenAI, greedy: str) -> None:
    first = chat(client, logprobs=True, max_tokens=1).choices[0].logprobs.content[0].token
    banned = chat(client, logit_bias={str(id_of(client, first)): -100}, max_tokens=1).choices[0].message.content
    assert banned != first
    plain, penalised = (
        complete(client, "yes yes yes yes", max_tokens=12, frequency_penalty=penalty, presence_penalty=penalty)
        for penalty in (0, 2)
    )
    assert plain.choices[0].text != penalised.choices[0].text


def id_of(client: openai.OpenAI, text: str) -> int:
    """The id of a token with this text: the last of a prompt that ends with it."""
    answer = httpx.post(
        f"{str(client.base_url).removesuffix('/v1/')}/generate",
        json={"inputs": f"x{text}", "max_tokens": 1, "prompt_logprobs": 0},
    ).json()
    token_id: int = answer["outputs"][0]["prompt_logprobs"][-1]["token_id"]
    return token_id


def test_roles_and_parts(client: openai.OpenAI) -> None:
    system = chat(client, messages=[{"role": "system", "content": "Say yes."}, *QUESTION])
    developer = chat(client, messages=[{"role": "developer", "content": "Say yes."}, *QUESTION])
    assert system.choices[0].message == developer.choices[0].message
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of France?"}]
    whole, split = chat(client), chat(client, messages=[{"role": "user", "content": parts}])
    assert whole.choices[0].message == split.choices[0].message


def test_tools(client: openai.OpenAI, greedy: str) -> None:
    offered = chat(client, tools=[WEATHER], tool_choice="auto", parallel_tool_calls=False, max_tokens=4)
    assert offered.usage.prompt_tokens > chat(client).usage.prompt_tokens
    hidden = chat(client, tools=[WEATHER], tool_choice="none")
    assert hidden.choices[0].message.content == greedy
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3 degrees"},
    ]
    assert chat(client, messages=messages, tools=[WEATHER]).choices[0].finish_reason in ("stop", "length", "tool_calls")


class Weather(BaseModel):
    """What is told of the weather."""

    city: Literal["Bern", "Paris"]
    sunny: bool
    degrees: Annotated[int, Field(ge=0, le=9)]


WEATHER_SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "weather",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Paris"]}, "sunny": {"type": "boolean"}},
            "required": ["city", "sunny"],
            "additionalProperties": False,
        },
    },
}
TELL_ME: Any = [{"role": "user", "content": "How is the weather in Paris? Answer as JSON."}]


def test_answers_of_a_schema(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model=MODEL, messages=TELL_ME, response_format=Weather, temperature=0, max_tokens=60
    )
    (choice,) = parsed.choices
    assert isinstance(choice.message.parsed, Weather) and choice.finish_reason == "stop"
    whole = chat(client, messages=TELL_ME, response_format=WEATHER_SCHEMA, max_tokens=60)
    found = json.loads(whole.choices[0].message.content)
    assert found.keys() == {"city", "sunny"} and found["city"] in ("Bern", "Paris") and type(found["sunny"]) is bool
    streamed = chat(client, messages=TELL_ME, response_format=WEATHER_SCHEMA, max_tokens=60, stream=True)
    assert json.loads("".join(chunk.choices[0].delta.content or "" for chunk in streamed)) == found
    several = chat(
        client, messages=TELL_ME, response_format=WEATHER_SCHEMA, max_tokens=60, n=3, temperature=1.2, seed=4
    )
    assert all(json.loads(choice.message.content).keys() == found.keys() for choice in several.choices)
    plain = chat(client, response_format={"type": "text"})
    assert plain.choices[0].message == chat(client).choices[0].message


def test_a_stream_that_is_parsed_as_it_comes(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=TELL_ME, response_format=Weather, temperature=0, max_tokens=60
    ) as stream:
        partial = [event.parsed for event in stream if event.type == "content.delta" and event.parsed]
        final = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(final, Weather) and len(partial) > 1


def test_a_json_object_and_what_vllm_calls_structured(client: openai.OpenAI) -> None:
    answer = chat(client, messages=TELL_ME, response_format={"type": "json_object"}, max_tokens=200).choices[0]
    assert answer.message.content.startswith("{")
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    chosen = chat(client, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert chosen.choices[0].message.content in ("yes", "no")
    digits = complete(client, "My number is ", extra_body={"structured_outputs": {"regex": "[0-9]{3}"}})
    assert re.fullmatch("[0-9]{3}", digits.choices[0].text)


def test_an_answer_of_a_schema_that_is_cut_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=TELL_ME, response_format=Weather, max_tokens=2)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_calls_that_must_be_made(client: openai.OpenAI, choice: Any) -> None:
    tool: Any = openai.pydantic_function_tool(Weather, name="get_weather", description="The weather now")
    found = client.chat.completions.parse(
        model=MODEL, messages=TELL_ME, tools=[tool], tool_choice=choice, temperature=0, max_tokens=100,
        parallel_tool_calls=False,
    ).choices[0]  # fmt: skip
    assert found.finish_reason == "tool_calls" and found.message.tool_calls is not None
    (call,) = found.message.tool_calls
    assert call.function.name == "get_weather" and isinstance(call.function.parsed_arguments, Weather)
    streamed = chat(
        client, messages=TELL_ME, tools=[tool], tool_choice=choice, max_tokens=100, parallel_tool_calls=False,
        stream=True,
    )  # fmt: skip
    pieces = [call for chunk in streamed for call in chunk.choices[0].delta.tool_calls or ()]
    assert pieces[0].id and pieces[0].function.name == "get_weather"
    assert "".join(piece.function.arguments or "" for piece in pieces) == call.function.arguments


def test_usage_in_every_detail(client: openai.OpenAI) -> None:
    text = "The capital of France is a city on a river. " * 12
    first, second = (chat(client, messages=[{"role": "user", "content": text}]).usage for _ in range(2))
    assert second.prompt_tokens == first.prompt_tokens > 100
    assert 0 < second.prompt_tokens_details.cached_tokens < second.prompt_tokens
    details = second.completion_tokens_details
    assert (details.reasoning_tokens, details.accepted_prediction_tokens, details.audio_tokens) == (0, 0, 0)


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["The sea", "A tree"]
    found = client.embeddings.create(model=MODEL, input=texts)
    assert [each.index for each in found.data] == [0, 1] and found.usage.prompt_tokens == found.usage.total_tokens > 0
    plain = client.embeddings.create(model=MODEL, input=texts[1], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(found.data[1].embedding, abs=1e-5)
    size = len(plain.data[0].embedding)
    assert sum(value * value for value in plain.data[0].embedding) == pytest.approx(1, abs=1e-3)
    ids = client.embeddings.create(model=MODEL, input=[[504, 3575], [282]])
    assert [len(each.embedding) for each in ids.data] == [size, size]
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=MODEL, input=[])


def test_prompts_that_are_too_long_are_cut_where_that_is_asked_for(client: openai.OpenAI) -> None:
    context = client.models.retrieve(MODEL).model_extra["max_context_tokens"]  # type: ignore[index]
    words = "word " * context
    with pytest.raises(openai.BadRequestError):
        complete(client, words, max_tokens=2)
    room = context - 100  # so that what is left of the prompt is soon read
    cut = complete(client, words, max_tokens=room, stop=" ", extra_body={"truncate": True})
    assert cut.usage.prompt_tokens == 100 and cut.choices[0].finish_reason == "stop"
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, max_tokens=1, extra_headers={"x-request-id": "from-python"}
    )
    assert (raw.status_code, raw.headers["x-request-id"]) == (200, "from-python")


def test_completions(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "The sea was"]
    batch = complete(client, prompts, n=2, temperature=0.9, seed=3)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3] and batch.usage.completion_tokens <= 32
    texts = [choice.text for choice in complete(client, prompts).choices]
    assert texts == [complete(client, prompt).choices[0].text for prompt in prompts]
    assert "".join(chunk.choices[0].text for chunk in complete(client, prompts[0], stream=True)) == texts[0]
    assert len(complete(client, [504, 3575, 282]).choices[0].text) > 0
    assert len(complete(client, "a", max_tokens=openai.NOT_GIVEN).choices[0].text) > 0


def test_echo_and_logprobs_of_completions(client: openai.OpenAI) -> None:
    prompt = "The capital of France"
    answer = complete(client, prompt, echo=True, logprobs=2, max_tokens=3)
    (choice,) = answer.choices
    logprobs = choice.logprobs
    assert choice.text.startswith(prompt) and "".join(logprobs.tokens) == choice.text
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    starts = itertools.accumulate((len(token) for token in logprobs.tokens), initial=0)
    assert logprobs.text_offset == list(starts)[:-1]
    scored = complete(client, prompt, echo=True, logprobs=0, max_tokens=0)
    assert scored.choices[0].text == prompt and scored.usage.completion_tokens == 0
    assert scored.choices[0].logprobs.token_logprobs == pytest.approx(
        logprobs.token_logprobs[: len(scored.choices[0].logprobs.tokens)], abs=1e-4
    )


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "tokenwire")
    assert client.models.retrieve(MODEL) == model


@pytest.mark.parametrize(
    ("call", "kind", "code", "param"),
    [
        (lambda c: chat(c, model="nobody"), openai.NotFoundError, "model_not_found", None),
        (lambda c: c.models.retrieve("nobody"), openai.NotFoundError, "model_not_found", None),
        (lambda c: c.images.generate(prompt="a"), openai.NotFoundError, "no_such_path", None),
        (lambda c: chat(c, messages=[]), openai.BadRequestError, "invalid_request", "messages"),
        (lambda c: chat(c, temperature=-1), openai.BadRequestError, "invalid_request", "temperature"),
        (lambda c: chat(c, n=0), openai.BadRequestError, "invalid_request", "n"),
        (lambda c: chat(c, max_tokens=10**7), openai.BadRequestError, "context_length_exceeded", "max_tokens"),
        (
            lambda c: chat(c, max_tokens=10**7, stream=True),
            openai.BadRequestError,
            "context_length_exceeded",
            "max_tokens",
        ),
        (lambda c: chat(c, store=True), openai.BadRequestError, "unsupported_parameter", "store"),
        (
            lambda c: chat(
                c, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}
            ),
            openai.BadRequestError,
            "constraint_invalid",
            "json_schema",
        ),
        (lambda c: chat(c, logit_bias={"x": 1}), openai.BadRequestError, "invalid_request", "logit_bias"),
        (lambda c: chat(c, top_logprobs=2), openai.BadRequestError, "invalid_request", "top_logprobs"),
        (lambda c: chat(c, stop=["a"] * 17), openai.BadRequestError, "invalid_request", "stop"),
        (lambda c: chat(c, extra_body={"x": 1}), openai.BadRequestError, "unknown_parameter", "x"),
        (lambda c: chat(c, modalities=["audio"]), openai.BadRequestError, "unsupported_parameter", "modalities"),
        (lambda c: complete(c, "a", suffix="b"), openai.BadRequestError, "unsupported_parameter", "suffix"),
        (lambda c: complete(c, "a", best_of=2), openai.BadRequestError, "unsupported_parameter", "best_of"),
        (lambda c: complete(c, "word " * 20_000), openai.BadRequestError, "context_length_exceeded", "prompt"),
        (
            lambda c: chat(c, extra_body={"timeout": 0.02, "ignore_eos": True}, max_tokens=2000),
            openai.InternalServerError,
            "deadline_exceeded",
            None,
        ),
    ],
)
def test_errors(
    client: openai.OpenAI,
    call: Callable[[openai.OpenAI], Any],
    kind: type[openai.APIStatusError],
    code: str,
    param: str,
) -> None:
    with pytest.raises(kind) as caught:
        call(client)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id


def test_who_leaves_a_stream_or_loses_patience_is_cancelled_in_the_engine(client: openai.OpenAI, stack: Stack) -> None:
    long: dict[str, Any] = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}
    with chat(client, stream=True, **long) as stream:
        next(iter(stream))
    until_idle(stack)
    with pytest.raises(openai.APITimeoutError):
        chat(client.with_options(timeout=0.3), **long)
    until_idle(stack)


def test_asyncio_clients_together_and_one_that_is_cancelled(stack: Stack) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{stack.http_url}/v1", api_key="unused", max_retries=0) as client:

            async def ask(number: int) -> str:
                text = ""
                asked: Any = [{"role": "user", "content": f"Count to {number}"}]
                stream = await client.chat.completions.create(
                    model=MODEL, messages=asked, temperature=0, max_tokens=8, stream=True
                )
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
                return text

            texts = await asyncio.gather(*map(ask, range(8)))
            assert all(texts)
            long: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
            task = asyncio.ensure_future(client.chat.completions.create(**long))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    until_idle(stack)
