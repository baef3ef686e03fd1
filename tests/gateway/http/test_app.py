import asyncio

import pytest

from gateway.http.errors import error_object, error_response
from tests.fakes.live_gateway import gateway_over_fake, live_gateway
from tests.fakes.tokenizer_tier import MODEL, fake_tokenizer_tier
from tokenwire.errors import (
    BY_CODE,
    AlreadyExists,
    Cancelled,
    FailedPrecondition,
    FieldViolation,
    InvalidRequest,
    MessageTooLarge,
    Overloaded,
    Unsupported,
)

CHAT = "/v1/chat/completions"
GOOD = {"messages": [{"role": "user", "content": "a b"}]}
JSON = {"content-type": "application/json"}


def test_words_of_others_are_answered_with_ours() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            for word, ours in (
                ("deadline", ": use timeout, in seconds"),
                ("lora", ": use the adapter's name as model"),
                ("odd", ""),
            ):
                response = await live.http.post(CHAT, json={**GOOD, word: 1})
                assert response.json()["error"]["message"] == f"{word}: there is no such field{ours}"

    asyncio.run(main())


def test_a_body_that_is_said_to_be_compressed_is_refused() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            for encoding, status in (("gzip", 415), ("identity", 200)):
                response = await live.http.post(CHAT, json=GOOD, headers={"content-encoding": encoding})
                assert response.status_code == status, response.text
            response = await live.http.post(CHAT, json=GOOD, headers={"content-encoding": "br"})
            assert "Content-Encoding 'br' is not allowed: send the body as it is" in response.text

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"messages": \xff\xfe}', "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": Infinity}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": 1e999}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "a"}], "seed": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_400_and_the_next_one_is_answered(content: bytes, message: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post(CHAT, content=content, headers=JSON)
            assert response.status_code == 400, response.text
            assert message in response.json()["error"]["message"]
            assert (await live.http.post(CHAT, json=GOOD)).status_code == 200

    asyncio.run(main())


def test_an_oversize_body_is_refused_with_and_without_a_length() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_body_bytes=4096) as (tier, live):
            response = await live.http.post(CHAT, content=b"x" * 100_000, headers=JSON)
            assert response.status_code == 413 and response.json()["error"]["code"] == "message_too_large"

            async def pieces():
                for _ in range(100):
                    yield b"x" * 1000

            response = await live.http.post(CHAT, content=pieces(), headers=JSON)
            assert response.status_code == 413
            assert (await live.http.post(CHAT, json=GOOD)).status_code == 200
            assert len(tier.requests) == 1

    asyncio.run(main())


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type_is_a_415(content_type: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post(CHAT, content=b"{}", headers={"content-type": content_type})
            assert response.status_code == 415 and "application/json" in response.json()["error"]["message"]
            headers = {"content-type": "application/json; charset=utf-8"}
            response = await live.http.post("/generate", content=b'{"inputs": "a"}', headers=headers)
            assert response.status_code == 200

    asyncio.run(main())


def test_paths_and_methods_that_are_not_there() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.get("/v2/nothing")
            assert response.status_code == 404 and response.json()["error"]["code"] == "no_such_path"
            response = await live.http.get(CHAT)
            assert response.status_code == 405 and response.headers["allow"] == "POST"
            assert response.json()["error"]["code"] == "method_not_allowed"

    asyncio.run(main())


def test_models() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            listed = (await live.http.get("/v1/models")).json()
            assert listed["object"] == "list" and [m["id"] for m in listed["data"]] == [MODEL]
            one = (await live.http.get(f"/v1/models/{MODEL}")).json()
            assert one == listed["data"][0] and one["object"] == "model"
            response = await live.http.get("/v1/models/some/other")
            assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"

    asyncio.run(main())


def test_a_request_id_comes_back_and_goes_down() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            response = await live.http.post(CHAT, json=GOOD, headers={"x-request-id": "mine"})
            assert response.headers["x-request-id"] == "mine"
            assert tier.requests[0].context.request_id == "mine"
            response = await live.http.post(CHAT, json={**GOOD, "stream": True})
            assert response.headers["x-request-id"] == tier.requests[1].context.request_id
            assert (await live.http.get("/nowhere")).headers["x-request-id"].startswith("req-")
            for bad in ("x" * 129, "naïve".encode("latin-1")):
                response = await live.http.post(CHAT, json=GOOD, headers={"x-request-id": bad})
                assert response.status_code == 400 and response.json()["error"]["param"] == "x-request-id"

    asyncio.run(main())


def test_readiness_says_what_is_missing_and_recovers() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier:
            port = tier.port
            await tier.kill()
            async with live_gateway(tier, wait=False) as live:
                assert (await live.http.get("/healthz")).json() == {"status": "ok"}
                assert (await live.http.head("/healthz")).status_code == 200
                response = await live.http.head("/readyz")
                assert (response.status_code, response.content) == (503, b"")
                response = await live.http.get("/readyz")
                assert response.status_code == 503 and tier.target in response.json()["missing"]
                for path, body in ((CHAT, GOOD), ("/v1/completions", {"prompt": "a", "stream": True})):
                    response = await live.http.post(path, json=body)
                    assert response.status_code == 503
                    assert response.json()["error"]["code"] == "tokenizer_tier_down"
                    assert response.headers["retry-after"] == "1"
                assert (await live.http.get("/v1/models")).status_code == 503
                await tier.start(port=port)
                await live.until_ready()
                assert (await live.http.head("/readyz")).status_code == 200
                assert (await live.http.get("/readyz")).json() == {"status": "ready", "models": [MODEL]}
                assert (await live.http.post(CHAT, json=GOOD)).status_code == 200

    asyncio.run(main())


def test_what_is_missing_behind_a_tier_has_a_time_to_come_back() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            response = await live.http.post("/generate", json={"inputs": "!down"})
            assert response.status_code == 503 and response.headers["retry-after"] == "1"
            lost = asyncio.ensure_future(live.http.post("/generate", json={"inputs": "!hang"}))
            await tier.until(lambda: tier.num_running == 1)
            await tier.kill()
            response = await lost
            assert response.status_code == 503 and response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "tokenizer_tier_lost"

    asyncio.run(main())


def test_overload_is_refused_with_a_time_to_come_back() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_concurrent_requests=1) as (tier, live):
            running = asyncio.ensure_future(live.http.post("/generate", json={"inputs": "!step a"}))
            await tier.until(lambda: tier.num_running == 1)
            response = await live.http.post("/generate", json={"inputs": "x"})
            assert response.status_code == 429 and response.headers["retry-after"] == "1"
            assert response.json()["error"]["type"] == "rate_limit_error"
            while not running.done():
                tier.step()
                await asyncio.sleep(0.002)
            assert running.result().json()["outputs"][0]["text"] == "a"

    asyncio.run(main())


def test_a_call_of_many_choices_is_refused_whole() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_concurrent_requests=4) as (tier, live):
            running = asyncio.ensure_future(live.http.post("/generate", json={"inputs": "!step a"}))
            await tier.until(lambda: tier.num_running == 1)
            response = await live.http.post("/v1/completions", json={"prompt": ["x", "y"], "n": 2})
            assert response.status_code == 429 and response.headers["retry-after"] == "1"
            response = await live.http.post("/v1/completions", json={"prompt": ["x", "y"], "n": 3})
            error = response.json()["error"]
            assert response.status_code == 400 and error["param"] == "n"
            assert error["message"].startswith("n: 2 prompts times 3 choices are 6 outputs: at most 4")
            assert len(tier.requests) == 1
            while not running.done():
                tier.step()
                await asyncio.sleep(0.002)

    asyncio.run(main())


def test_time_that_runs_out() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            tier.deaf = True
            response = await live.http.post(
                CHAT, json={**GOOD, "timeout": 0.05, "messages": [{"role": "user", "content": "!hang"}]}
            )
            assert response.status_code == 504 and response.json()["error"]["type"] == "timeout_error"
            response = await live.http.post("/generate", json={"inputs": "!hold a b", "timeout": 0.05})
            output = response.json()["outputs"][0]
            assert (output["text"], output["finish_reason"]) == ("a", "deadline")

    asyncio.run(main())


def test_metrics_count_requests_by_api_and_outcome() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            await live.http.post(CHAT, json=GOOD)
            await live.http.post(CHAT, json={})
            text = (await live.http.get("/metrics")).text
            assert 'tokenwire_gateway_requests_total{api="http.chat",outcome="ok"} 1.0' in text
            assert 'tokenwire_gateway_requests_total{api="http.chat",outcome="invalid_argument"} 1.0' in text
            assert 'tokenwire_gateway_first_text_seconds_count{api="http.chat"} 1.0' in text
            assert "tokenwire_gateway_output_tokens_total 2.0" in text
            assert "tokenwire_gateway_open_streams 0.0" in text

    asyncio.run(main())


@pytest.mark.parametrize("kind", [*BY_CODE.values(), MessageTooLarge])
def test_every_error_of_the_table_has_its_status_and_shape(kind) -> None:
    response = error_response(kind("why"))
    assert response.status_code == kind.http_status
    error = error_object(kind("why"))
    assert error == {"message": "why", "type": kind.openai_type, "param": None, "code": kind.default_reason.lower()}


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("options.sampling.top_p", "top_p"),
        ("options.stop.stop_strings", "stop"),
        ("options.num_choices", "n"),
        ("context.priority", "priority"),
        ("context.request_id", "x-request-id"),
        ("text", "prompt"),
        ("token_ids.ids[2]", "prompt[2]"),
        ("conversation.messages[1].role", "messages[1].role"),
        ("prompt[3]", "prompt[3]"),
        ("truncate", "truncate"),
    ],
)
def test_fields_of_the_wire_get_their_http_names(field: str, name: str) -> None:
    error = error_object(InvalidRequest(f"{field}: no", violations=[FieldViolation(field, "no")]))
    assert (error["param"], error["message"]) == (name, f"{name}: no")


def test_a_retry_time_is_whole_seconds() -> None:
    assert error_response(Overloaded("full", retry_after_s=1.2)).headers["retry-after"] == "2"
    assert error_response(Overloaded("full", retry_after_s=0.01)).headers["retry-after"] == "1"


def test_clients_are_told_when_another_try_is_of_no_use() -> None:
    for kind in BY_CODE.values():
        final = kind in (Unsupported, AlreadyExists, FailedPrecondition, Cancelled)
        assert error_response(kind("why")).headers.get("x-should-retry") == ("false" if final else None)
