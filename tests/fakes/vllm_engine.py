"""Calls of vLLM's own gRPC service to a model tier with the mock engine, which serves it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc

from model_svc.engine.mock_runner import mock_token
from tests.fakes.live_model_tier import LiveTier, live_model_tier
from tests.fakes.tokenizers_trained import byte_level_bpe
from tokenwire.errors import (
    TokenwireError,
)
from tokenwire.status import from_rpc_error

Test = Callable[[LiveTier, Any], Awaitable[None]]
TOKENIZER = byte_level_bpe()
VOCAB_SIZE = TOKENIZER.get_vocab_size()


def run(test: Test, **settings: Any) -> None:
    async def main() -> None:
        async with live_model_tier(vllm_engine=True, mock_vocab_size=VOCAB_SIZE, **settings) as live:
            await test(live, vllm_engine_pb2_grpc.VllmEngineStub(live.channel))
            await live.until_idle()

    asyncio.run(main())


def request(
    *ids: int, request_id: str = "r", stream: bool = True, max_tokens: int = 4, **params: Any
) -> pb.GenerateRequest:
    params = {"temperature": 0.0, "max_tokens": max_tokens, **params}
    return pb.GenerateRequest(
        request_id=request_id,
        tokenized=pb.TokenizedInput(input_ids=ids or [5, 6, 7]),
        sampling_params=pb.SamplingParams(**params),
        stream=stream,
    )


def tokens_of(*ids: int, num: int = 4) -> list[int]:
    """What the mock engine generates."""
    return [mock_token(list(ids or (5, 6, 7)), None, 0, position, VOCAB_SIZE) for position in range(num)]


async def answered(call: Any) -> tuple[list[int], list[pb.GenerateComplete]]:
    """The tokens of the chunks, and the complete messages, which come last."""
    tokens: list[int] = []
    ends: list[pb.GenerateComplete] = []
    async for response in call:
        if response.WhichOneof("response") == "chunk":
            assert response.chunk.index not in [end.index for end in ends], "a chunk after the complete message"
            tokens += response.chunk.token_ids
        else:
            ends.append(response.complete)
    return tokens, ends


async def refused(call: Any) -> TokenwireError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if isinstance(call, grpc.aio.UnaryUnaryCall) else call.read())
    return from_rpc_error(caught.value)
