"""What clients say stays out of logs, metrics, channelz and the page's view, in all tiers and at every level of logs.

Secrets of callers: tests/gateway/identity/test_matrix.py.
"""

import asyncio
import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc

from tests.fakes.live_gateway import LiveGateway, generate_request
from tests.fakes.whole_stack import WholeStack, whole_stack
from tokenwire.logs import JsonFormatter
from tokenwire.telemetry import exposition
from tokenwire.v1 import gateway_pb2, tokenizer_pb2

SAID = "xyzzy-said-in-confidence"


def bodies() -> list[tuple[str, dict[str, Any]]]:
    """Such that are answered, and such that are refused at every stage: JSON, fields, template, grammar, context."""
    user = {"role": "user", "content": f"My word is {SAID}."}
    tool = {"type": "function", "function": {"name": "f", "description": SAID, "parameters": {"title": SAID}}}
    call = {"id": SAID, "type": "function", "function": {"name": "f", "arguments": f'{{"a": "{SAID}"'}}
    bad_schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": SAID}}}
    chats: list[dict[str, Any]] = [
        {"messages": [user]}, {"messages": [user], "tools": [tool]}, {"messages": [user], "stop": [SAID]},
        {"messages": [user, {"role": "assistant", "tool_calls": [call]}]}, {"messages": [{"role": SAID}]},
        {"messages": [user], "chat_template_kwargs": {"a": SAID}}, {"messages": [{"role": "user", "content": [SAID]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": SAID}, {"type": SAID}]}]},
        {"messages": [user], "response_format": bad_schema}, {"messages": [user], "temperature": SAID},
        {"messages": [user], "structured_outputs": {"regex": f"({SAID}"}}, {"messages": SAID},
        {"messages": [user], "structured_outputs": {"choice": [SAID, "b"]}},
        {"messages": [{"role": "user", "content": SAID * 10_000}]},
    ]  # fmt: skip
    texts: list[dict[str, Any]] = [
        {"prompt": SAID}, {"prompt": SAID, "echo": True, "logprobs": 1}, {"prompt": [SAID, 1]}, {"prompt": {"a": SAID}},
        {"prompt": SAID * 10_000}, {"prompt": "a", "suffix": SAID}, {"prompt": "a", "logit_bias": {SAID: 1}},
    ]  # fmt: skip
    ways = [{**chat, "stream": streamed} for chat in chats for streamed in (False, True)]
    return [
        *(("/v1/chat/completions", {"max_tokens": 2, **chat}) for chat in ways),
        *(("/v1/completions", {"max_tokens": 2, **text}) for text in texts),
        ("/v1/embeddings", {"input": SAID}), ("/v1/embeddings", {"input": [SAID, ""]}),
        ("/generate", {"inputs": SAID, "parameters": {"max_new_tokens": 2}}),
    ]  # fmt: skip


async def over_grpc(live: LiveGateway) -> None:
    requests = [generate_request(f"{SAID} {number}") for number in range(3)]
    requests[1].options.constraint.ebnf = f"root ::= {SAID}"
    requests[2].options.constraint.json_schema = f'{{"type": "{SAID}"}}'
    for request in requests:
        request.options.stop.max_tokens = 2
        with suppress(grpc.aio.AioRpcError):
            assert [answer async for answer in live.stub.Generate(request)]
    message = tokenizer_pb2.ChatMessage(role="user", content=SAID)
    conversation = tokenizer_pb2.Conversation(messages=[message], template_arguments_json=f'[{{"{SAID}"')
    with suppress(grpc.aio.AioRpcError):
        assert [answer async for answer in live.stub.Chat(gateway_pb2.ChatRequest(conversation=conversation))]
    for ask in (live.stub.Tokenize, live.stub.CountTokens):
        kind = tokenizer_pb2.TokenizeRequest if ask is live.stub.Tokenize else tokenizer_pb2.CountTokensRequest
        with suppress(grpc.aio.AioRpcError, ValueError):
            await ask(kind(texts=[SAID]))


async def shown(stack: WholeStack) -> str:
    """Metrics and channelz of every tier, and one picture of the page's view."""
    found = [exposition(each.registry).decode() for each in (stack.gateway, stack.tokenizer, stack.model)]
    for channel in (stack.gateway.channel, stack.tokenizer.channel, stack.model.channel):
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        servers = await stub.GetServers(channelz_pb2.GetServersRequest())
        found.append(str(servers))
        for server in servers.server:
            asked = channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id)
            found.append(str(await stub.GetServerSockets(asked)))
    async with stack.gateway.http.stream("GET", "/live") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                found.append(line)
                break
    return "\n".join(found)


def test_nothing_that_is_said_is_written_down(trained_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        async with whole_stack(trained_folder) as stack:
            codes = set()
            for path, body in bodies():
                codes.add((await stack.gateway.http.post(path, json=body)).status_code)
            broken = json.dumps({"prompt": SAID})[:-1].encode()
            headers = {"content-type": "application/json"}
            codes.add((await stack.gateway.http.post("/v1/completions", content=broken, headers=headers)).status_code)
            assert {200, 400} <= codes <= {200, 400, 412}
            await over_grpc(stack.gateway)
            await stack.until_idle()
            return await shown(stack)

    with caplog.at_level(logging.DEBUG):
        pictures = asyncio.run(main())
    assert "tokenwire_model_ended_total" in pictures and "data: {" in pictures and "listen_socket" in pictures
    assert SAID not in pictures
    lines = [JsonFormatter("gateway").format(record) for record in caplog.records]
    assert sum("request finished" in line for line in lines) > 30
    assert [line for line in lines if SAID in line] == []
