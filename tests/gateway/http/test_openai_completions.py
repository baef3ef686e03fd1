import asyncio
import json

import pytest

from tests.fakes.live_gateway import gateway_over_fake
from tokenwire.wire import options_from_wire


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
        ({"prompt": "x", "echo": True, "truncate": True}, "truncate"),
        ({"prompt": "x", "echo": True, "max_tokens": 0, "stream": True}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "", "echo": True, "logprobs": 1}, "prompt"),
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


@pytest.mark.parametrize("prompt", ["one two", [5, 6]])
def test_echo_puts_the_prompt_and_its_logprobs_before_the_text(prompt) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            asked = {"prompt": [prompt, prompt], "max_tokens": 2, "n": 2, "echo": True, "logprobs": 1}
            answer = (await live.http.post("/v1/completions", json=asked)).json()
            shown = prompt if isinstance(prompt, str) else "t5 t6"
            assert len(answer["choices"]) == 4
            for choice in answer["choices"]:
                assert choice["text"] == shown + shown
                logprobs = choice["logprobs"]
                assert logprobs["tokens"][0] == ("t0" if isinstance(prompt, str) else "t5")
                assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
                assert [len(values) for values in logprobs.values()] == [
                    1 + 3 + 2
                ] * 4  # the fake has three of a prompt
                assert logprobs["text_offset"][0] == 0 and logprobs["text_offset"][-2] == len(shown)
            assert options_from_wire(tier.requests[0].options).prompt_logprobs == 1

            streamed = await live.http.post("/v1/completions", json={**asked, "stream": True})
            texts: dict[int, str] = {}
            found: dict[int, dict[str, list]] = {}
            for line in streamed.text.split("\n\n")[:-2]:
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
                for name, values in (choice["logprobs"] or {}).items():
                    found.setdefault(choice["index"], {}).setdefault(name, []).extend(values)
            assert texts == {index: choice["text"] for index, choice in enumerate(answer["choices"])}
            assert found == {index: choice["logprobs"] for index, choice in enumerate(answer["choices"])}

    asyncio.run(main())


def test_echo_without_output_tells_what_the_prompt_was_worth() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            asked = {"prompt": "one two", "max_tokens": 0, "echo": True, "logprobs": 0}
            answer = (await live.http.post("/v1/completions", json=asked)).json()
            (choice,) = answer["choices"]
            assert (choice["text"], choice["finish_reason"]) == ("one two", "length")
            assert len(choice["logprobs"]["tokens"]) == 1 + 3
            assert answer["usage"]["completion_tokens"] == 0
            assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] == 2
            assert tier.requests[0].options.stop.max_tokens == 1

    asyncio.run(main())


def test_echo_of_a_prompt_without_logprobs_asks_nobody() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            answer = (await live.http.post("/v1/completions", json={"prompt": "a b", "echo": True})).json()
            assert answer["choices"][0]["text"] == "a ba b" and answer["choices"][0]["logprobs"] is None
            response = await live.http.post("/v1/completions", json={"prompt": "a b", "echo": True, "stream": True})
            first = json.loads(response.text.split("\n\n")[0].removeprefix("data: "))["choices"][0]
            assert (first["text"], first["logprobs"], first["finish_reason"]) == ("a b", None, None)

    asyncio.run(main())


def test_echo_asks_below_only_for_requests_that_are_let_in() -> None:
    asked = {"prompt": [1, 2], "echo": True, "max_tokens": 1}

    async def main() -> None:
        async with gateway_over_fake(tenant_requests_per_s=0.001) as (tier, live):
            found = [(await live.http.post("/v1/completions", json=asked)).status_code for _ in range(3)]
            assert found == [200, 429, 429] and len(tier.detokenizes) == 1
        async with gateway_over_fake() as (tier, live):
            response = await live.http.post("/v1/completions", json={**asked, "prompt": [[1], [2]], "priority": 1000})
            assert response.status_code == 400 and not tier.detokenizes

    asyncio.run(main())


@pytest.mark.parametrize("own", [True, False], ids=["its own limit", "the default"])
def test_echo_has_the_time_that_its_request_has(own: bool) -> None:
    async def main() -> None:
        settings = {} if own else {"default_timeout_s": 0.3}
        async with gateway_over_fake(**settings) as (tier, live):
            tier.holds_detokenizes = True
            asked = {"prompt": [1, 2], "echo": True, **({"timeout": 0.3} if own else {})}
            response = await live.http.post("/v1/completions", json=asked)
            assert response.status_code == 504 and response.json()["error"]["code"] == "deadline_exceeded"
            await live.until_idle()
            assert tier.detokenizes

    asyncio.run(main())
