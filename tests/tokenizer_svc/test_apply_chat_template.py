"""Conversations as a call brings them: rendered, and refused by what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.live_tokenizer_tier import LiveTokenizerTier, refusal, with_tier
from tests.fakes.tokenizers_trained import write_folder
from tokenwire.errors import FailedPrecondition, InvalidRequest
from tokenwire.v1 import tokenizer_pb2 as pb


def test_apply_chat_template(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        conversation = pb.Conversation(messages=[{"role": "user", "content": "Hi"}])
        expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        answer = await live.stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(conversation=conversation))
        assert (answer.text, list(answer.token_ids)) == (expected, [])
        request = pb.ApplyChatTemplateRequest(conversation=conversation, tokenize=True)
        answer = await live.stub.ApplyChatTemplate(request)
        assert (answer.text, list(answer.token_ids)) == (expected, live.ids(expected))
        assert answer.fingerprint.chat_template.startswith("sha256:")

    with_tier(trained_folder, call)


def test_a_model_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        conversation = pb.Conversation(messages=[{"role": "user", "content": "Hi"}])
        for tokenize in (False, True):
            request = pb.ApplyChatTemplateRequest(conversation=conversation, tokenize=tokenize)
            error = await refusal(live.stub.ApplyChatTemplate(request))
            assert isinstance(error, FailedPrecondition) and "chat_template.jinja" in error.message

    with_tier(write_folder(tmp_path / "bare", chat_template=None), call)


def test_tools_render_as_they_were_written(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tools", chat_template="{{ tools | tojson }}{{ messages | tojson }}")

    async def call(live: LiveTokenizerTier) -> None:
        conversation = pb.Conversation(
            messages=[
                {"role": "assistant", "tool_calls": [{"id": "c1", "name": "f", "arguments": '{"b": 1, "a": 2.5}'}]}
            ]
        )
        parameters = {"type": "object", "properties": {"n": {"minimum": 1.0, "maximum": 2.5, "enum": [1, 2.0]}}}
        conversation.tools.add(name="f", description="d", parameters_json=json.dumps(parameters))
        answer = await live.stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(conversation=conversation))
        function = {"name": "f", "description": "d", "parameters": parameters}
        call_ = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": 2.5}}}
        expected = json.dumps([{"type": "function", "function": function}])
        expected += json.dumps([{"role": "assistant", "content": "", "tool_calls": [call_]}])
        assert answer.text == expected

    with_tier(folder, call)


@pytest.mark.parametrize("split", [False, True])
def test_a_conversation_that_is_wrong_is_told_by_its_place(trained_folder: Path, split: bool) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        good = pb.Conversation(messages=[{"role": "user", "content": "hi"}])
        for bad, field in (
            (pb.Conversation(), "conversations[1].messages"),
            (pb.Conversation(messages=[{"content": "hi"}]), "conversations[1].messages[0].role"),
            (
                pb.Conversation(messages=good.messages, template_arguments_json='{"tools": 1}'),
                "conversations[1].template_arguments.tools",
            ),
        ):
            request = pb.CountTokensRequest(conversations=[good, bad], split_special_tokens=split)
            error = await refusal(live.stub.CountTokens(request))
            assert type(error) is InvalidRequest and error.violations[0].field == field
            assert error.message.startswith(f"{field}: ")

    with_tier(trained_folder, call)


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"\\udc00": 1}', '{"a": 1e999}', '{"a": [NaN]}', "[1]", "{"])
def test_json_that_cannot_be_written_into_a_prompt_is_refused_by_its_field(trained_folder: Path, text: str) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        user = {"role": "user", "content": "hi"}
        for conversation, field in (
            (
                pb.Conversation(messages=[user], tools=[{"name": "f", "parameters_json": text}]),
                "tools[0].parameters_json",
            ),
            (pb.Conversation(messages=[user], documents_json=[text]), "documents_json[0]"),
            (pb.Conversation(messages=[user], template_arguments_json=text), "template_arguments_json"),
        ):
            error = await refusal(live.stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(conversation=conversation)))
            assert type(error) is InvalidRequest and error.violations[0].field == f"conversation.{field}"

    with_tier(trained_folder, call)


@pytest.mark.parametrize("split", [False, True])
def test_json_is_nested_within_bounds(tmp_path: Path, split: bool) -> None:
    folder = write_folder(
        tmp_path / "deep", chat_template="{{ [tools, documents, messages, deep | default(0)] | tojson }}"
    )

    def conversation(field: str, text: str) -> pb.Conversation:
        found = pb.Conversation(messages=[{"role": "user", "content": "<s>"}])
        match field:
            case "tools[0].parameters_json":
                found.tools.add(name="f", parameters_json=text)
            case "documents_json[0]":
                found.documents_json.append(text)
            case "template_arguments_json":
                found.template_arguments_json = text
            case _:
                found.messages[0].tool_calls.add(id="1", name="f", arguments=text)
        return found

    async def call(live: LiveTokenizerTier) -> None:
        for field in (
            "tools[0].parameters_json",
            "documents_json[0]",
            "template_arguments_json",
            "messages[0].tool_calls[0].arguments",
        ):

            def apply(num_levels: int, field: str = field) -> Any:
                text = '{"deep":' * (num_levels - 1) + "[]" + "}" * (num_levels - 1)
                return live.stub.ApplyChatTemplate(
                    pb.ApplyChatTemplateRequest(
                        conversation=conversation(field, text), tokenize=True, split_special_tokens=split
                    )
                )

            assert (await apply(127)).text.count('"deep"') >= 125
            for num_levels in (128, 800, 5_000):
                error = await refusal(apply(num_levels))
                assert type(error) is InvalidRequest and error.violations[0].field == f"conversation.{field}"
                assert "at most 127 levels" in str(error)

    with_tier(folder, call)


def test_arguments_that_are_no_json_are_refused(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        conversation = pb.Conversation(
            messages=[{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]
        )
        error = await refusal(live.stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(conversation=conversation)))
        assert error.violations[0].field == "conversation.messages[0].tool_calls[0].arguments"

    with_tier(trained_folder, call)
