import asyncio
import json

import openai
import pytest

from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.tokenizer_tier import MODEL
from tokenwire.requests import CancelReason
from tokenwire.wire import options_from_wire


def body(text: str = "one two three", **fields) -> dict:
    return {"messages": [{"role": "user", "content": text}], **fields}


def events(text: str) -> list:
    """The data of each server-sent event; the end mark as it stands."""
    found = []
    for line in text.split("\n\n"):
        if line:
            assert line.startswith("data: ") and "\n" not in line
            data = line.removeprefix("data: ")
            found.append(data if data == "[DONE]" else json.loads(data))
    return found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages: [] is not allowed: at least one message is needed"),
        ({"max_tokens": -1}, "max_tokens: -1 is not allowed: an integer ≥ 1"),
        ({"max_tokens": 0}, "max_tokens: 0 is not allowed: an integer ≥ 1"),
        ({"max_completion_tokens": -1}, "max_completion_tokens: -1 is not allowed: an integer ≥ 1"),
        ({"max_tokens": 2**32}, "max_tokens: 4294967296 is not allowed: an integer ≥ 1, at most 2^32 - 1"),
    ],
)
def test_what_is_allowed_is_said_in_words(fields: dict, message: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post("/v1/chat/completions", json=body(**fields))
            assert (response.status_code, response.json()["error"]["message"]) == (400, message)

    asyncio.run(main())


@pytest.mark.parametrize(("path", "fields"), [("chat/completions", body()), ("completions", {"prompt": "a"})])
def test_truncate_goes_down(path: str, fields: dict) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            for truncate in (True, False):
                response = await live.http.post(f"/v1/{path}", json={**fields, "truncate": truncate})
                assert response.status_code == 200
            assert [request.truncate for request in tier.requests] == [True, False]

    asyncio.run(main())


@pytest.mark.parametrize(("path", "fields"), [("chat/completions", body()), ("completions", {"prompt": "a"})])
def test_what_is_said_of_special_tokens_goes_down(path: str, fields: dict) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            asked = {
                "skip_special_tokens": False, "spaces_between_special_tokens": False,
                "include_stop_str_in_output": True, "split_special_tokens": True,
            }  # fmt: skip
            for more in (asked, {}):
                assert (await live.http.post(f"/v1/{path}", json={**fields, **more})).status_code == 200
            first, second = tier.requests
            for request, given in ((first, True), (second, False)):
                options = options_from_wire(request.options)
                assert options.skip_special_tokens is not given
                assert options.spaces_between_special_tokens is not given
                assert options.include_stop_string is request.split_special_tokens is given

    asyncio.run(main())


def test_an_answer_has_the_shape_of_the_reference() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            response = await live.http.post(
                "/v1/chat/completions",
                json=body(
                    max_completion_tokens=2, temperature=0, top_p=0.5, top_k=3, min_p=0.1, seed=5, stop="x", n=2,
                    stop_token_ids=[9], ignore_eos=True, priority=7, timeout=30, user="me", metadata={"a": "b"},
                    model=MODEL,
                ),
            )  # fmt: skip
            assert response.status_code == 200
            answer = response.json()
            assert answer["id"].startswith("chatcmpl-") and answer["created"] > 1_600_000_000
            assert (answer["object"], answer["model"]) == ("chat.completion", MODEL)
            assert answer["choices"] == [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": "one two", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "length",
                }
                for index in range(2)
            ]
            assert answer["usage"] == {
                "prompt_tokens": 3,
                "completion_tokens": 4,
                "total_tokens": 7,
                "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 0,
                    "accepted_prediction_tokens": 0,
                    "rejected_prediction_tokens": 0,
                    "audio_tokens": 0,
                },
            }
            request = tier.requests[0]
            options = request.options
            assert (options.sampling.temperature, options.sampling.seed, options.sampling.top_k) == (0, 5, 3)
            assert options.sampling.top_p == 0.5 and options.sampling.min_p == pytest.approx(0.1)
            assert (list(options.stop.stop_strings), list(options.stop.stop_token_ids)) == (["x"], [9])
            assert options.stop.ignore_eos and request.context.priority == 7
            assert 29_000 < request.context.timeout_ms <= 30_000

    asyncio.run(main())


def test_a_stream_begins_with_the_role_and_ends_with_reason_usage_and_mark() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post(
                "/v1/chat/completions",
                json=body('naïve "日本" \\ 😀', stream=True, stream_options={"include_usage": True}),
            )
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert (
                response.headers["cache-control"] == "no-cache, no-transform"
                and response.headers["x-accel-buffering"] == "no"
            )
            *chunks, usage, done = events(response.text)
            assert done == "[DONE]" and usage["choices"] == [] and usage["usage"]["total_tokens"] == 8
            assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == 'naïve "日本" \\ 😀'
            assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
            assert chunks[-1]["choices"][0]["delta"] == {}
            assert len({(c["id"], c["created"], c["model"], c["object"]) for c in [*chunks, usage]}) == 1
            assert all(c["usage"] is None for c in chunks) and chunks[0]["object"] == "chat.completion.chunk"

    asyncio.run(main())


def test_text_parts_and_the_developer_role() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            parts = [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]
            messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "ann"}]
            response = await live.http.post("/v1/chat/completions", json={"messages": messages})
            assert response.json()["choices"][0]["message"]["content"] == "in parts"
            sent = [(m.role, m.content, m.name) for m in tier.requests[0].conversation.messages]
            assert sent == [("system", "be brief", ""), ("user", "in parts", "ann")]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_request"),
        ({"messages": "hi"}, "messages", "invalid_request"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "invalid_request"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "invalid_request"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "invalid_request"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "invalid_request",
        ),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages[0].colour", "unknown_parameter"),
        ({"temperature": -1}, "temperature", "invalid_request"),
        ({"temperature": "hot"}, "temperature", "invalid_request"),
        ({"top_p": 0}, "top_p", "invalid_request"),
        ({"top_p": 1.5}, "top_p", "invalid_request"),
        ({"min_p": 2}, "min_p", "invalid_request"),
        ({"top_k": -1}, "top_k", "invalid_request"),
        ({"seed": -(2**63) - 1}, "seed", "invalid_request"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_request"),
        ({"service_tier": "gold"}, "service_tier", "invalid_request"),
        ({"verbosity": "low"}, "verbosity", "unsupported_parameter"),
        ({"max_tokens": 0}, "max_tokens", "invalid_request"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_request"),
        ({"max_tokens": True}, "max_tokens", "invalid_request"),
        ({"max_tokens": 2**40}, "max_tokens", "invalid_request"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "invalid_request"),
        ({"n": 0}, "n", "invalid_request"),
        ({"n": 129}, "n", "invalid_request"),
        ({"stop": 5}, "stop", "invalid_request"),
        ({"stop": ["a", None]}, "stop", "invalid_request"),
        ({"stop": [""]}, "stop", "invalid_request"),
        ({"stop": ["x"] * 17}, "stop", "invalid_request"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_request"),
        ({"priority": 101}, "priority", "invalid_request"),
        ({"timeout": 0}, "timeout", "invalid_request"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_request"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "invalid_request"),
        ({"response_format": {"type": "grammar"}}, "response_format.type", "invalid_request"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "invalid_request"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "invalid_request",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_request"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "invalid_request"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "unsupported_parameter"),
        ({"structured_outputs": {"regex": ""}}, "regex", "invalid_request"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"json_object": True}},
            "structured_outputs",
            "invalid_request",
        ),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"colour": "red"}, "colour", "unknown_parameter"),
        ({"messages": [{"role": "user", "content": "!bad"}]}, "max_tokens", "invalid_request"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", "invalid_request"),
    ],
)
def test_bad_input_names_its_field(fields: dict, param: str, code: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            for stream in (False, True) if "stream_options" not in fields else (False,):
                response = await live.http.post("/v1/chat/completions", json={**body(), "stream": stream, **fields})
                assert response.status_code == 400, response.text
                error = response.json()["error"]
                assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
                assert param in error["message"]

    asyncio.run(main())


def test_values_that_change_nothing_are_accepted() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            neutral = {
                "tools": None, "tool_choice": "none", "response_format": {"type": "text"}, "logprobs": False,
                "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "modalities": ["text"],
                "service_tier": "auto", "store": False, "temperature": None, "stop": None, "n": None,
            }  # fmt: skip
            response = await live.http.post("/v1/chat/completions", json=body(**neutral))
            assert response.status_code == 200, response.text

    asyncio.run(main())


def test_an_unknown_model_is_not_found() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post("/v1/chat/completions", json=body(model="other"))
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "model_not_found" and MODEL in response.text

    asyncio.run(main())


@pytest.mark.parametrize(("script", "status", "kind"), [("!break", 500, "api_error"), ("!late", 504, "timeout_error")])
def test_an_end_without_a_finish_reason_is_an_error(script: str, status: int, kind: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post("/v1/chat/completions", json=body(f"{script} a b"))
            assert response.status_code == status and response.json()["error"]["type"] == kind
            streamed = await live.http.post("/v1/chat/completions", json=body(f"{script} a b", stream=True))
            *chunks, error = events(streamed.text)
            assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "a b"
            assert all(c["choices"][0]["finish_reason"] is None for c in chunks)
            assert error["error"]["type"] == kind

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_request_back_at_once(stream: bool) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            payload = json.dumps(body("!hold a b", stream=stream)).encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", live.server.http.port)
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
            if stream:
                await reader.readuntil(b'"content":"a"')
            await tier.until(lambda: tier.num_running == 1)
            writer.close()
            await tier.until(lambda: tier.cancels == [CancelReason.CLIENT] and tier.num_running == 0)
            await live.until_idle()
            await live.until(lambda: live.count("http.chat", "cancelled") == 1)

    asyncio.run(main())


def test_the_openai_client_reads_answers_streams_and_errors() -> None:
    async def main() -> None:
        async with (
            gateway_over_fake() as (_, live),
            openai.AsyncOpenAI(base_url=f"{live.http_url}/v1", api_key="unused", max_retries=0) as client,
        ):
            messages = [{"role": "user", "content": "one two three"}]
            answer = await client.chat.completions.create(model=MODEL, messages=messages, max_tokens=2)
            assert answer.choices[0].message.content == "one two" and answer.choices[0].finish_reason == "length"
            assert answer.usage.completion_tokens == 2 and answer.usage.prompt_tokens_details.cached_tokens == 1
            stream = await client.chat.completions.create(
                model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
            assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.completion_tokens == 3
            with pytest.raises(openai.BadRequestError) as bad:
                await client.chat.completions.create(model=MODEL, messages=messages, top_p=7)
            assert bad.value.param == "top_p"
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="other", messages=messages)
            broken = [{"role": "user", "content": "!break a b"}]
            stream = await client.chat.completions.create(model=MODEL, messages=broken, stream=True)
            with pytest.raises(openai.APIError, match="the fake broke"):
                async for _ in stream:
                    pass
            completion = await client.completions.create(model=MODEL, prompt=["a b", "c d"], max_tokens=2)
            assert [choice.text for choice in completion.choices] == ["a b", "c d"]
            stream = await client.completions.create(model=MODEL, prompt=[5, 6], stream=True)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == "t5 t6"
            assert [model.id async for model in client.models.list()] == [MODEL]
            assert (await client.models.retrieve(MODEL)).id == MODEL

    asyncio.run(main())


def test_a_negative_seed_is_the_64_bits_that_it_is() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            for seed in (-1, -(2**63), 2**64 - 1, 0):
                assert (await live.http.post("/v1/chat/completions", json=body(seed=seed))).status_code == 200
            assert [r.options.sampling.seed for r in tier.requests] == [2**64 - 1, 2**63, 2**64 - 1, 0]

    asyncio.run(main())


def test_the_head_of_an_answer_tells_tier_and_fingerprint() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            plain = (await live.http.post("/v1/chat/completions", json=body())).json()
            assert plain["system_fingerprint"].startswith("fp_") and "service_tier" not in plain
            tiered = (await live.http.post("/v1/chat/completions", json=body(service_tier="priority"))).json()
            assert tiered["service_tier"] == "default"
            assert tiered["system_fingerprint"] == plain["system_fingerprint"]
            response = await live.http.post("/v1/chat/completions", json=body(service_tier="auto", stream=True))
            for chunk in events(response.text)[:-1]:
                assert chunk["service_tier"] == "default"
                assert chunk["system_fingerprint"] == plain["system_fingerprint"]

    asyncio.run(main())
