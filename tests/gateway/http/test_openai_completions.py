import asyncio
import json

import pytest

from tests.fakes.live_gateway import gateway_over_fake


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("one two three", ["one two"]),
        (["a", "b c d"], ["a", "b c"]),
        ([5, 6, 7], ["t5 t6"]),
        ([[5], [6, 7, 8]], ["t5", "t6 t7"]),
    ],
)
def test_prompts_in_all_their_forms(prompt, texts: list[str]) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 2, "n": 2})
            answer = response.json()
            assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
            assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(texts)))
            assert [choice["text"] for choice in answer["choices"]] == [text for text in texts for _ in range(2)]
            usage = answer["usage"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            assert usage["completion_tokens"] == 2 * sum(len(text.split()) for text in texts)

    asyncio.run(main())


def test_max_tokens_is_sixteen_when_absent() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            answer = (await live.http.post("/v1/completions", json={"prompt": "w " * 40})).json()
            assert answer["usage"]["completion_tokens"] == 16
            assert answer["choices"][0]["finish_reason"] == "length"

    asyncio.run(main())


def test_a_stream_tags_each_text_with_its_index() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post("/v1/completions", json={"prompt": ["a b", "c"], "n": 2, "stream": True})
            *lines, done = response.text.removesuffix("\n\n").split("\n\n")
            texts, reasons = {}, {}
            for line in lines:
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                index = choice["index"]
                assert index not in reasons, "text after the end"
                texts[index] = texts.get(index, "") + choice["text"]
                if choice["finish_reason"]:
                    reasons[index] = choice["finish_reason"]
            assert texts == {0: "a b", 1: "a b", 2: "c", 3: "c"} and set(reasons.values()) == {"stop"}
            assert done == "data: [DONE]"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt[0]"),
        ({"prompt": [[1], [2.5]]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**32]}, "prompt"),
        ({"prompt": ["ok", ""]}, "prompt[1]"),
        ({"prompt": [[1], [-1]]}, "prompt[1]"),
        ({"prompt": ["ok", "x"], "max_tokens": -1}, "max_tokens"),
        ({"prompt": ["x"] * 5}, "prompt"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_bad_input_names_its_field(fields: dict, param: str) -> None:
    async def main() -> None:
        async with gateway_over_fake(max_prompts=4) as (_, live):
            response = await live.http.post("/v1/completions", json=fields)
            assert response.status_code == 400, response.text
            assert response.json()["error"]["param"] == param

    asyncio.run(main())
