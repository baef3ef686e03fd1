"""Constraints on their way through the tokenizer tier: unchanged but for the reasoning an answer may begin with."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.fakes.live_tokenizer_tier import TextPeer, live_tokenizer_tier, text_request, tokenizer_over_fake
from tests.fakes.model_tier import fake_model_tier
from tests.fakes.tokenizers_trained import write_folder
from tests.fakes.tool_model import tool_folder
from tests.tokenizer_svc.test_answers import ASK, chosen
from tokenizer_svc.chat_template import Conversation
from tokenwire.constraints import FreeText, regex
from tokenwire.errors import InvalidRequest
from tokenwire.v1 import common_pb2
from tokenwire.wire import options_from_wire


def test_what_an_answer_may_begin_with_is_known_from_the_template_and_the_prompt(tmp_path: Path) -> None:
    reasons, plain = chosen(tool_folder(tmp_path / "tools")), chosen(write_folder(tmp_path / "plain"))
    conversation = Conversation(ASK)
    assert reasons.free_text(conversation, "hi") == FreeText("<think>", "</think>")
    assert reasons.free_text(conversation, "hi <think>\n") == FreeText("<think>", "</think>", is_open=True)
    assert reasons.free_text("a text", "<think>") is None and reasons.free_text((1, 2), "<think>") is None
    assert plain.free_text(conversation, "<think>") is None


def test_a_constraint_goes_down_and_the_form_is_asked_of_the_answer_alone(tmp_path: Path) -> None:
    async def main() -> None:
        folder = tool_folder(tmp_path)
        async with fake_model_tier() as below, live_tokenizer_tier(folder, below) as live:
            peer = await TextPeer.open(live)
            text = text_request("Once")
            conversation = text_request()
            conversation.conversation.messages.add(role="user", content="hi")
            theirs = text_request()
            theirs.CopyFrom(conversation)
            for request in (text, conversation, theirs):
                request.options.constraint.regex = "[ab]+"
            theirs.options.constraint.before.MergeFrom(common_pb2.FreeText(opening="<x>", closing="</x>"))
            for handle, request in enumerate((text, conversation, theirs), 1):
                await peer.submit(handle, request)
                found = options_from_wire((await below.request(handle - 1)).request.options).constraint
                assert found is not None and found.form is regex("a").form and found.text == "[ab]+"
                expected = [None, FreeText("<think>", "</think>"), FreeText("<x>", "</x>")]
                assert found.before == expected[handle - 1]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("num_tools", "description_bytes", "told"), [(1, 300_000, "bytes of schemas are too many"), (300, 10, "1 to 256")]
)
def test_tools_that_are_too_much_to_be_called_by_force_are_the_callers_own_error(
    num_tools: int, description_bytes: int, told: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(tool_folder(tmp_path)) as (below, _, peer):
            huge, other = text_request(), text_request("Once")
            huge.conversation.messages.add(role="user", content="hi")
            huge.conversation.required_tool = "*"
            parameters = json.dumps({"type": "object", "description": "d" * description_bytes})
            for number in range(num_tools):
                huge.conversation.tools.add(name=f"tool{number}", parameters_json=parameters)
            huge.truncation.max_tokens = 16
            await peer.submit(1, huge)
            error = (await peer.end(1)).error
            assert isinstance(error, InvalidRequest) and told in error.message
            assert [violation.field for violation in error.violations] == ["conversation.tools"]
            assert not below.requests
            await peer.submit(2, other)
            assert (await peer.end(2)).error is None

    asyncio.run(main())
