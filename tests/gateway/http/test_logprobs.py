"""Log-probabilities and the other options of sampling over HTTP, in OpenAI's forms and in /generate's."""

import asyncio
import json

import openai
import pytest

from gateway.http.logprobs import LEAST, chat_logprobs, completion_logprobs, plain_logprobs
from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.tokenizer_tier import MODEL
from tokenwire.requests import TokenLogprob

TEXT = "naïve 日本 😀"
TOKENS = ["naïve", " 日本", " 😀"]
MESSAGES = [{"role": "user", "content": TEXT}]
PATHS = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": TEXT},
    "/generate": {"inputs": TEXT},
}


def test_the_openai_client_reads_them_whole_and_streamed() -> None:
    async def main() -> None:
        async with (
            gateway_over_fake() as (tier, live),
            openai.AsyncOpenAI(base_url=f"{live.http_url}/v1", api_key="unused", max_retries=0) as client,
        ):
            asked = {"model": MODEL, "messages": MESSAGES, "logprobs": True, "top_logprobs": 2, "n": 2}
            answer = await client.chat.completions.create(**asked)
            chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
            for index in range(2):
                whole = answer.choices[index].logprobs
                streamed = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
                parts = [choice.logprobs for choice in streamed if choice.logprobs is not None]
                assert whole.refusal is None and all(part.refusal is None for part in parts)
                assert [t for part in parts for t in part.content] == whole.content
                assert [t.token for t in whole.content] == TOKENS
                assert [bytes(t.bytes).decode() for t in whole.content] == TOKENS
                assert [t.logprob for t in whole.content] == [-0.25, -1.25, -2.25]
                for token, top in zip(TOKENS, whole.content, strict=True):
                    assert [(t.token, t.logprob) for t in top.top_logprobs] == [(token, -0.25), (f"{token}1", -0.5)]
                assert "".join(choice.delta.content or "" for choice in streamed) == TEXT
                assert streamed[-1].logprobs is None and streamed[-1].finish_reason == "stop"
            completion = await client.completions.create(model=MODEL, prompt=[TEXT, "a"], logprobs=1)
            found = completion.choices[0].logprobs
            assert (found.tokens, found.token_logprobs) == (TOKENS, [-0.25, -1.25, -2.25])
            assert found.text_offset == [0, 5, 8] and found.top_logprobs == [{token: -0.25} for token in TOKENS]
            assert completion.choices[1].logprobs.tokens == ["a"]
            stream = await client.completions.create(model=MODEL, prompt=TEXT, logprobs=1, stream=True)
            parts = [chunk.choices[0].logprobs for chunk in [c async for c in stream] if chunk.choices[0].logprobs]
            assert [token for part in parts for token in part.tokens] == TOKENS
            assert [offset for part in parts for offset in part.text_offset] == [0, 5, 8]
            assert answer.usage.prompt_tokens_details.cached_tokens == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"logprobs": None}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_how_many_are_asked_for_in_chat(fields: dict, expected: int | None) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            response = await live.http.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})
            (choice,) = response.json()["choices"]
            output = tier.requests[0].options.output
            assert (output.logprobs if output.HasField("logprobs") else None) == expected
            if expected is None:
                assert choice["logprobs"] is None
            else:
                assert [len(token["top_logprobs"]) for token in choice["logprobs"]["content"]] == [expected] * 3

    asyncio.run(main())


def test_generate_has_a_plain_form_with_the_prompts_too() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            body = {"inputs": [TEXT, "a"], "logprobs": 1, "prompt_logprobs": 0}
            first, second = (await live.http.post("/generate", json=body)).json()["outputs"]
            assert [token["text"] for token in first["logprobs"]] == TOKENS
            assert first["logprobs"][1] == {
                "token_id": 1, "text": " 日本", "logprob": -1.25, "text_offset": 5,
                "top": [{"token_id": 1, "text": " 日本", "logprob": -0.25}],
            }  # fmt: skip
            assert [token["token_id"] for token in first["prompt_logprobs"]] == [1, 2, 3]
            assert len(second["logprobs"]) == 1
            streamed = await live.http.post("/generate", json={**body, "stream": True})
            assert '": ' not in streamed.text, "one spacing throughout"
            *lines, _ = streamed.text.removesuffix("\n\n").split("\n\n")
            events = [json.loads(line.removeprefix("data: ")) for line in lines]
            own = [event for event in events if event["index"] == 0]
            for name in ("logprobs", "prompt_logprobs"):
                assert [token for event in own for token in event.get(name, [])] == first[name]
            (plain,) = (await live.http.post("/generate", json={"inputs": "a"})).json()["outputs"]
            assert "logprobs" not in plain and "prompt_logprobs" not in plain

    asyncio.run(main())


def test_an_output_without_tokens_has_none() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            body = {"prompt": "!step", "logprobs": 1}
            (choice,) = (await live.http.post("/v1/completions", json=body)).json()["choices"]
            assert choice["logprobs"] == {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("/v1/chat/completions", {"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ("/v1/chat/completions", {"logprobs": 1}, "logprobs"),
        ("/v1/chat/completions", {"prompt_logprobs": 1}, "prompt_logprobs"),
        ("/v1/completions", {"logprobs": 6}, "logprobs"),
        ("/v1/completions", {"logprobs": -1}, "logprobs"),
        ("/v1/completions", {"logprobs": True}, "logprobs"),
        ("/v1/completions", {"top_logprobs": 1}, "top_logprobs"),
        ("/generate", {"logprobs": 21}, "logprobs"),
        ("/generate", {"prompt_logprobs": -1}, "prompt_logprobs"),
        *(
            (path, fields, next(iter(fields)))
            for path in PATHS
            for fields in (
                {"frequency_penalty": 2.5}, {"presence_penalty": -2.5}, {"presence_penalty": "high"},
                {"repetition_penalty": 0}, {"min_tokens": -1}, {"min_tokens": 4, "max_tokens": 3},
                {"logit_bias": {"five": 1}}, {"logit_bias": {"-5": 1}}, {"logit_bias": {"05": 1}},
                {"logit_bias": {"5": 101}}, {"logit_bias": {str(2**32): 1}}, {"logit_bias": {"9" * 5000: 1}},
                {"logit_bias": [5]}, {"banned_sequences": [[]]},
            )
        ),
        *((path, {"allowed_token_ids": [-1]}, "allowed_token_ids[0]") for path in PATHS),
        *((path, {"banned_sequences": [[1] * 65]}, "banned_sequences[0]") for path in PATHS),
        *((path, {"banned_sequences": [[1], [2**32]]}, "banned_sequences[1][0]") for path in PATHS),
    ],
)  # fmt: skip
def test_bad_values_name_their_field(path: str, fields: dict, param: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            response = await live.http.post(path, json={**PATHS[path], **fields})
            assert response.status_code == 400, response.text
            error = response.json()["error"]
            field = error["param"].partition(".")[0] if param == "logit_bias" else error["param"]
            assert field == param and param in error["message"] and not tier.requests

    asyncio.run(main())


@pytest.mark.parametrize("path", PATHS)
def test_the_options_of_sampling_go_down(path: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            fields = {
                "frequency_penalty": -0.5, "presence_penalty": 0, "repetition_penalty": 1.25, "min_tokens": 2,
                "logit_bias": {"0": -100, "70": 1.5}, "allowed_token_ids": [3, 4], "banned_sequences": [[5], [6, 7]],
            }  # fmt: skip
            response = await live.http.post(path, json={**PATHS[path], **fields})
            assert response.status_code == 200, response.text
            options = tier.requests[0].options
            sampling = options.sampling
            assert (sampling.frequency_penalty, sampling.repetition_penalty) == (-0.5, 1.25)
            assert sampling.HasField("presence_penalty") and sampling.presence_penalty == 0
            assert dict(sampling.logit_bias) == {0: -100.0, 70: 1.5}
            assert list(sampling.allowed_token_ids) == [3, 4] and options.stop.min_tokens == 2
            assert [list(sequence.ids) for sequence in sampling.banned_sequences] == [[5], [6, 7]]

    asyncio.run(main())


def test_what_json_and_dictionaries_cannot_hold_is_made_to_fit() -> None:
    never = TokenLogprob(
        1, float("-inf"), (TokenLogprob(2, -0.5, text="\ufffd"), TokenLogprob(3, -1, text="\ufffd")), "x"
    )
    (chat,) = chat_logprobs([never])["content"]
    assert chat["logprob"] == plain_logprobs([never])[0]["logprob"] == LEAST
    assert completion_logprobs([never])["top_logprobs"] == [{"\ufffd": -0.5, "x": LEAST}]
