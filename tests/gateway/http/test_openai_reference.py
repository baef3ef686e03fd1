"""Every field of OpenAI's reference, as its Python client has it: served, or named in docs/openai.md."""

import asyncio
import re
import typing
from pathlib import Path
from typing import Any

import openai.types as types
import openai.types.chat as chat_types
import openai.types.chat.chat_completion as whole
import openai.types.chat.chat_completion_chunk as chunk
import openai.types.completion_usage as usage_types
import pytest
from openai.types import completion_create_params as completion_params
from openai.types import create_embedding_response as embedding_types
from openai.types import embedding_create_params as embedding_params
from openai.types.chat import completion_create_params as chat_params

from gateway.http.answer_schemas import ANSWERS
from gateway.http.body import NOT_BUILT
from gateway.http.chat_messages import UNBUILT_MESSAGE, ChatMessageFields
from gateway.http.fields import UNBUILT_STREAM_OPTIONS, AccountFields, StreamOptions
from gateway.http.openai_chat import UNBUILT_CHAT, ChatBody
from gateway.http.openai_completions import UNBUILT_COMPLETION, CompletionBody
from gateway.http.openai_embeddings import EmbeddingBody
from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.tokenizer_tier import MODEL

PAGE = (Path(__file__).parents[3] / "docs" / "openai.md").read_text()
MESSAGES = (
    chat_types.ChatCompletionUserMessageParam, chat_types.ChatCompletionAssistantMessageParam,
    chat_types.ChatCompletionToolMessageParam, chat_types.ChatCompletionSystemMessageParam,
    chat_types.ChatCompletionDeveloperMessageParam,
)  # fmt: skip
UNBUILT: dict[str, dict[str, tuple[Any, ...]]] = {
    "/v1/chat/completions": UNBUILT_CHAT,
    "/v1/completions": UNBUILT_COMPLETION,
    "/v1/embeddings": {},
}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"model": MODEL, "prompt": "a"},
    "/v1/embeddings": {"model": MODEL, "input": "a"},
}


def section(title: str) -> str:
    """Of the page, as one line."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return " ".join(found[1].split())


def fields_of(params: Any) -> set[str]:
    return set(typing.get_type_hints(params))


@pytest.mark.parametrize(
    ("params", "body", "unbuilt"),
    [
        (chat_params.CompletionCreateParamsStreaming, ChatBody, UNBUILT_CHAT),
        (completion_params.CompletionCreateParamsStreaming, CompletionBody, UNBUILT_COMPLETION),
        (embedding_params.EmbeddingCreateParams, EmbeddingBody, {}),
        (chat_types.ChatCompletionStreamOptionsParam, StreamOptions, UNBUILT_STREAM_OPTIONS),
        *((message, ChatMessageFields, UNBUILT_MESSAGE) for message in MESSAGES),
    ],
)
def test_every_field_of_a_request_is_honoured_refused_or_named_as_ignored(
    params: Any, body: Any, unbuilt: dict[str, Any]
) -> None:
    fields = fields_of(params)
    assert fields <= set(body.model_fields) | set(unbuilt)
    assert not set(body.model_fields) & set(unbuilt)
    for name in fields & set(unbuilt):
        assert re.search(rf"[`.]{name}`", section("What is refused")), name
    for name in fields & set(AccountFields.model_fields):
        assert f"`{name}`" in section("What is ignored"), name
    for name in fields & set(body.model_fields) - set(AccountFields.model_fields):
        assert re.search(rf"[`.]{name}[`.]", PAGE), name


@pytest.mark.parametrize("path", UNBUILT)
def test_what_is_not_built_is_refused_by_name_but_for_what_changes_nothing(path: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            for name, neutral in UNBUILT[path].items():
                for value in neutral:
                    response = await live.http.post(path, json={**ASKED[path], name: value})
                    assert response.status_code == 200, (name, value, response.text)
                for value in ({"type": "x"}, True, "x", 7):
                    response = await live.http.post(path, json={**ASKED[path], name: value})
                    error = response.json()["error"]
                    assert (response.status_code, error["code"]) == (400, "unsupported_parameter"), (name, value)
                    assert (error["param"], NOT_BUILT in error["message"]) == (name, True)
            response = await live.http.post(path, json={**ASKED[path], "of_tomorrow": None})
            assert response.json()["error"]["code"] == "unknown_parameter"

    asyncio.run(main())


def properties(name: str, *path: str) -> set[str]:
    """Fields of what answers have, by schema and the way into it."""
    schema: Any = ANSWERS[name]
    for word in path:
        schema = schema["items"] if word == "[]" else schema["properties"][word]
        schema = ANSWERS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return set(schema["properties"])


CHUNK = {*properties("ChatCompletion"), "object"}
DELTA = {"role", "content", "refusal", "tool_calls", "reasoning_content"}


@pytest.mark.parametrize(
    ("model", "served"),
    [
        (whole.ChatCompletion, properties("ChatCompletion")),
        (whole.Choice, properties("ChatCompletion", "choices", "[]")),
        (chat_types.ChatCompletionMessage, properties("ChatMessage")),
        (chat_types.ChatCompletionTokenLogprob, properties("ChatLogprobs", "content", "[]")),
        (chunk.ChatCompletionChunk, CHUNK),
        (chunk.ChoiceDelta, DELTA),
        (types.Completion, properties("Completion")),
        (types.CompletionChoice, properties("Completion", "choices", "[]")),
        (usage_types.CompletionUsage, properties("Usage")),
        (usage_types.PromptTokensDetails, properties("Usage", "prompt_tokens_details")),
        (usage_types.CompletionTokensDetails, properties("Usage", "completion_tokens_details")),
        (embedding_types.CreateEmbeddingResponse, properties("Embeddings")),
        (embedding_types.Usage, properties("Embeddings", "usage")),
        (types.Embedding, properties("Embeddings", "data", "[]")),
        (types.Model, properties("Model")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_field_of_an_answer_is_there_or_named_as_left_out(model: Any, served: set[str]) -> None:
    left_out = set(model.model_fields) - served
    for name in left_out:
        assert f"`{name}`" in section("What answers do not have"), name
    assert set(model.model_fields) & served
