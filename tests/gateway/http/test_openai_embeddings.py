import asyncio
import base64
import json
import struct
from typing import Any

import pytest

from gateway.embedding import CALL_INPUTS, MAX_CALLS
from gateway.http.openai_embeddings import base64_of, floats_of
from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.tokenizer_tier import MODEL
from tokenwire.v1 import model_pb2

PATH = "/v1/embeddings"


def vector_of(first: float, count: int, size: int = 4) -> list[float]:
    """What the fake gives, as the wire rounds it."""
    return [struct.unpack("f", struct.pack("f", first + 0.1))[0], float(count), *[0.0] * size][:size]


@pytest.mark.parametrize(
    ("given", "vectors", "num_tokens"),
    [
        ("a b c", [vector_of(97, 3)], 3),
        (["a", "b c"], [vector_of(97, 1), vector_of(98, 2)], 3),
        ([5, 6, 7], [vector_of(5, 3)], 3),
        ([[5], [6, 7]], [vector_of(5, 1), vector_of(6, 2)], 3),
    ],
)
@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_inputs_in_all_their_forms(given: Any, vectors: list[list[float]], num_tokens: int, encoding: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            body = {"input": given, "model": MODEL} | ({"encoding_format": encoding} if encoding else {})
            response = await live.http.post(PATH, json=body)
            assert response.status_code == 200 and response.headers["content-type"] == "application/json"
            answer = response.json()
            assert answer["object"] == "list" and answer["model"] == MODEL
            assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
            assert [each["index"] for each in answer["data"]] == list(range(len(vectors)))
            assert all(each["object"] == "embedding" for each in answer["data"])
            found = [each["embedding"] for each in answer["data"]]
            if encoding == "base64":
                found = [list(struct.unpack("<4f", base64.b64decode(each))) for each in found]
            assert [[struct.unpack("f", struct.pack("f", v))[0] for v in each] for each in found] == vectors
            assert live.count("http.embeddings", "ok") == 1
            counted = live.registry.get_sample_value("tokenwire_gateway_embedded_tokens_total")
            assert counted == num_tokens

    asyncio.run(main())


def test_options_and_who_asks_go_down() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            body = {
                "input": "a", "dimensions": 3, "pooling": "cls", "normalize": False, "truncate": True, "priority": 2,
                "tenant": "t", "timeout": 5, "user": "u",
            }  # fmt: skip
            response = await live.http.post(PATH, json=body, headers={"x-request-id": "mine"})
            assert response.json()["model"] == MODEL and len(response.json()["data"][0]["embedding"]) == 3
            (sent,) = tier.embeds
            options = model_pb2.EmbeddingOptions(pooling=model_pb2.POOLING_CLS, normalize=False, dimensions=3)
            assert sent.options == options and sent.truncate
            context = sent.context
            assert (context.request_id, context.priority, context.tenant) == ("mine", 2, "t")
            assert 4000 < context.timeout_ms <= 5000

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "status", "param", "said"),
    [
        ({}, 400, "input", "is required"),
        ({"input": []}, 400, "input", "0 inputs are not allowed: from 1 to 2048"),
        ({"input": ""}, 400, "input[0]", "is empty"),
        ({"input": ["a", ""]}, 400, "input[1]", "is empty"),
        ({"input": [[1], []]}, 400, "input[1]", "is empty"),
        ({"input": ["a"] * 2049}, 400, "input", "2049 inputs"),
        ({"input": ["a", [1]]}, 400, "input", "mixed"),
        ({"input": 7}, 400, "input", "7 is not allowed"),
        ({"input": [[-1]]}, 400, "input[0]", "token id -1"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format", "'hex' is not allowed"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions", "0 is not allowed"),
        ({"input": "a", "dimensions": "3"}, 400, "dimensions", "'3' is not allowed"),
        ({"input": "a", "pooling": "max"}, 400, "pooling", "'max' is not allowed"),
        ({"input": "a", "priority": 101}, 400, "priority", "101 is not allowed"),
        ({"input": "a", "temperature": 1}, 400, "temperature", "there is no such field"),
        ({"input": ["x"] * (CALL_INPUTS + 2) + ["!bad"]}, 400, f"input[{CALL_INPUTS + 2}]", "has 99 tokens"),
        ({"input": "!down"}, 503, None, "no model tier"),
        ({"input": "!hang", "timeout": 0.1}, 504, None, ""),
    ],
)
def test_what_is_refused(
    body: dict[str, Any], status: int, param: str | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            response = await live.http.post(PATH, json=body)
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (status, param), error
            assert said in error["message"]
            await tier.until(lambda: not tier.num_embedding)
            assert (await live.http.get(PATH)).status_code == 405

    asyncio.run(main())
    assert "ended with an error" not in caplog.text, "what is refused is no fault of ours"


def test_a_large_request_goes_down_in_several_calls_and_comes_back_in_order() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            inputs = [[i] for i in range(2048)]
            answer = (await live.http.post(PATH, json={"input": inputs})).json()
            assert [round(each["embedding"][0] - 0.1) for each in answer["data"]] == list(range(2048))
            assert answer["usage"]["total_tokens"] == 2048
            assert len(tier.embeds) == -(-2048 // CALL_INPUTS)
            assert len({each.context.request_id for each in tier.embeds}) == len(tier.embeds)

    asyncio.run(main())


def test_room_is_bounded_and_given_back() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_concurrent_requests=10) as (tier, live):
            assert (await live.http.post(PATH, json={"input": ["a"] * 11})).status_code == 400
            hanging = asyncio.ensure_future(live.http.post(PATH, json={"input": ["!hang"] * 8}))
            await tier.until(lambda: tier.num_embedding == 1)
            response = await live.http.post(PATH, json={"input": ["a"] * 3})
            assert response.status_code == 429 and "Retry-After" in response.headers
            assert (await live.http.post(PATH, json={"input": ["a"] * 2})).status_code == 200
            hanging.cancel()
            await tier.until(lambda: not tier.num_embedding)
            assert (await live.http.post(PATH, json={"input": ["a"] * 10})).status_code == 200

    asyncio.run(main())


def test_a_client_that_goes_takes_its_calls_back() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            body = json.dumps({"input": ["!hang"] * (5 * CALL_INPUTS)}).encode()
            _, writer = await asyncio.open_connection("127.0.0.1", live.server.http.port)
            head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            await tier.until(lambda: tier.num_embedding == MAX_CALLS)
            writer.close()
            await tier.until(lambda: not tier.num_embedding)
            await live.until(lambda: live.count("http.embeddings", "cancelled") == 1)
            assert len(tier.embeds) == MAX_CALLS

    asyncio.run(main())


def test_a_lost_tier_is_tried_once_more_elsewhere() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            await tier.kill()
            await live.until(lambda: not live.server.backends.ready)
            response = await live.http.post(PATH, json={"input": "a"})
            assert response.status_code == 503 and response.json()["error"]["code"] == "tokenizer_tier_down"

    asyncio.run(main())


def test_the_models_tell_what_they_do() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            (model,) = (await live.http.get("/v1/models")).json()["data"]
            assert model["capabilities"] == ["generate", "embed"] and model["embedding_size"] == 4

    asyncio.run(main())


def test_numbers_are_written_so_that_they_read_the_same() -> None:
    values = (0.1, -1e-30, 3.4e38, 1 / 3, 0.0, -1.0, 1e-45)
    vector = struct.pack("7f", *values)
    found = json.loads(floats_of(vector))
    assert struct.pack("7f", *found) == vector
    assert base64.b64decode(json.loads(base64_of(vector))) == struct.pack("<7f", *values)
