import asyncio
import json

import pytest

from tests.fakes.live_gateway import gateway_over_fake


def test_outputs_stand_beside_inputs_and_a_bad_one_sinks_no_other() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            inputs = ["a b c", "", "!bad", "d", "!late e f"]
            response = await live.http.post("/generate", json={"inputs": inputs, "max_tokens": 2, "truncate": True})
            assert response.status_code == 200
            outputs = response.json()["outputs"]
            assert [output["index"] for output in outputs] == list(range(5))
            assert [output["text"] for output in outputs] == ["a b", "", "", "d", "e f"]
            reasons = ["length", "error", "error", "stop_token", "deadline"]
            assert [output["finish_reason"] for output in outputs] == reasons
            assert [output["error"] and output["error"]["param"] for output in outputs] == [
                None, "inputs[1]", "max_tokens", None, None,
            ]  # fmt: skip
            assert outputs[0]["usage"]["completion_tokens"] == 2
            assert all(request.truncate for request in tier.requests)

    asyncio.run(main())


def test_a_stream_tags_events_with_their_index() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post("/generate", json={"inputs": ["a b", "", "c"], "stream": True})
            *lines, done = response.text.removesuffix("\n\n").split("\n\n")
            assert '": ' not in response.text and '", "' not in response.text, "one spacing throughout"
            texts, ends = {}, {}
            for line in lines:
                event = json.loads(line.removeprefix("data: "))
                assert event["index"] not in ends, "text after the end"
                texts[event["index"]] = texts.get(event["index"], "") + event["text"]
                if "finish_reason" in event:
                    ends[event["index"]] = event["finish_reason"]
            assert texts == {0: "a b", 1: "", 2: "c"}
            assert ends == {0: "stop_token", 1: "error", 2: "stop_token"} and done == "data: [DONE]"

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_single_bad_input_is_the_status_of_the_answer(stream: bool) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post("/generate", json={"inputs": "!bad", "stream": stream})
            assert response.status_code == 400 and response.json()["error"]["param"] == "max_tokens"
            broken = await live.http.post("/generate", json={"inputs": ["!break a"], "stream": True})
            text, error = (json.loads(x.removeprefix("data: ")) for x in broken.text.strip().split("\n\n"))
            assert text == {"index": 0, "text": "a"} and error["error"]["code"] == "internal"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [None]}, "inputs[0]"),
        ({"inputs": ["a", [2**32]]}, "inputs[1]"),
        ({"inputs": "x", "n": 2}, "n"),
        ({"inputs": "x", "truncate": "yes"}, "truncate"),
        ({"inputs": "x", "user": "me"}, "user"),
        ({"inputs": "x", "max_new_tokens": 5}, "max_new_tokens"),
    ],
)
def test_bad_input_names_its_field(fields: dict, param: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post("/generate", json=fields)
            assert response.status_code == 400, response.text
            assert response.json()["error"]["param"] == param

    asyncio.run(main())
