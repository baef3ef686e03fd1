"""Embed of the model tier: vectors in order, what is refused, what a cancel and a deadline do; with the mock engine."""

import asyncio
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from model_svc.embedding_request import VectorCollector
from model_svc.engine.mock_runner import EMBEDDING_SIZE, mock_vector
from tests.fakes.live_model_tier import LiveTier, RawSession, live_model_tier, token_request
from tests.fakes.tiny_encoders import POSITIONS, write_encoder, write_tokenizer
from tokenwire.embedding_wire import vectors_from_wire
from tokenwire.embeddings import MAX_INPUTS, EmbeddingOptions, Pooling
from tokenwire.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    TokenwireError,
    Unavailable,
)
from tokenwire.requests import FinishReason, Terminal, Usage
from tokenwire.status import from_rpc_error, from_wire
from tokenwire.v1 import common_pb2, model_pb2

Request = model_pb2.ModelServiceEmbedRequest


def request_of(*inputs: list[int], **fields: Any) -> Request:
    return Request(inputs=[common_pb2.TokenIds(ids=ids) for ids in inputs], **fields)


async def refusal(live: LiveTier, request: Request, timeout: float | None = None) -> TokenwireError:
    with pytest.raises(Exception) as caught:
        await live.stub.Embed(request, timeout=timeout)
    return from_rpc_error(caught.value)  # type: ignore[arg-type]


def test_vectors_come_in_the_order_of_the_inputs() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            inputs = [list(range(1, length)) for length in (700, 2, 40, 3, 1200)]
            response = await live.stub.Embed(request_of(*inputs))
            wanted = [mock_vector(ids, EmbeddingOptions(Pooling.LAST)) for ids in inputs]
            assert vectors_from_wire(response.embeddings) == wanted
            assert response.usage.prompt_tokens == sum(map(len, inputs))
            assert response.usage.completion_tokens == 0
            await live.until_idle()

    asyncio.run(main())


def test_pooling_dimensions_and_scaling_are_as_asked_for() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            options = model_pb2.EmbeddingOptions(pooling=model_pb2.POOLING_MEAN, normalize=False, dimensions=7)
            response = await live.stub.Embed(request_of([5, 6], options=options))
            (vector,) = vectors_from_wire(response.embeddings)
            assert vector == mock_vector([5, 6], EmbeddingOptions(Pooling.MEAN, False, 7))
            assert not math.isclose(math.hypot(*response.embeddings[0].values), 1.0, rel_tol=1e-3)
            response = await live.stub.Embed(request_of([5, 6]))
            assert math.isclose(math.hypot(*response.embeddings[0].values), 1.0, rel_tol=1e-5)

    asyncio.run(main())


def test_beside_a_session_that_generates() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1, 2], max_tokens=40)})
            embedding = asyncio.ensure_future(live.stub.Embed(request_of(*[[i, 9] for i in range(200)])))
            await session.read_until_finished(1)
            assert len(session.tokens[1]) == 40
            assert len((await embedding).embeddings) == 200
            session.call.cancel()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("request_", "kind", "said"),
    [
        (request_of(), InvalidRequest, "inputs: 0 inputs"),
        (request_of(*[[1]] * (MAX_INPUTS + 1)), InvalidRequest, "from 1 to 2048"),
        (request_of([1], []), InvalidRequest, r"inputs\[1\]: is empty"),
        (request_of([1], [2, 49_152]), InvalidRequest, r"inputs\[1\].ids: 49152 is outside the vocabulary"),
        (request_of([1] * 8_193), InvalidRequest, r"inputs\[0\].ids: 8193 tokens are too many: at most 8192"),
        (request_of([1], options={"dimensions": 65}), InvalidRequest, "options.dimensions: 65 is not allowed: 1 to 64"),
        (request_of([1], options={"dimensions": 0}), InvalidRequest, "options.dimensions: 0 is not allowed"),
        (
            request_of([1], options={"pooling": 17}),
            InvalidRequest,
            "options.pooling: 17 is not allowed: .*POOLING_MEAN",
        ),
        (request_of(*[[1] * 8_192] * 123), InvalidRequest, "tokens are too many: at most 1000000"),
        (request_of([1], model="other"), NotFound, "'other' is not served here"),
        (request_of([1], context={"priority": 101}), InvalidRequest, "context.priority"),
    ],
)
def test_what_is_refused(request_: Request, kind: type[TokenwireError], said: str) -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            error = await refusal(live, request_)
            assert isinstance(error, kind)
            assert re.search(said, error.message), error.message
            await live.until_idle()

    asyncio.run(main())


def test_the_longest_input_is_a_whole_context() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            assert len((await live.stub.Embed(request_of([1] * 8_192))).embeddings) == 1

    asyncio.run(main())


def test_a_full_queue_refuses_a_call_whole() -> None:
    async def main() -> None:
        async with live_model_tier(max_queued_requests=4, mock_step_ms=200.0, max_batch_size=1) as live:
            first = asyncio.ensure_future(live.stub.Embed(request_of(*[[1, 2]] * 4)))
            async with asyncio.timeout(5):
                while not live.tier.engine.backlog.num_queued:
                    await asyncio.sleep(0.005)
            error = await refusal(live, request_of(*[[1]] * 4))
            assert isinstance(error, Overloaded) and error.retry_after_s is not None
            assert len((await first).embeddings) == 4

    asyncio.run(main())


def test_a_caller_that_leaves_takes_its_inputs_back() -> None:
    async def main() -> None:
        async with live_model_tier(mock_step_ms=50.0, max_batch_size=2) as live:
            call = live.stub.Embed(request_of(*[[1, 2]] * 300))
            async with asyncio.timeout(5):
                while not live.tier.engine.load.queued:
                    await asyncio.sleep(0.005)
            call.cancel()
            async with asyncio.timeout(2):  # all 300 would take 7.5 s
                while live.tier.engine.num_open:
                    await asyncio.sleep(0.005)
            await live.until_idle()

    asyncio.run(main())


def test_a_deadline_ends_the_call_and_frees_the_engine() -> None:
    async def main() -> None:
        async with live_model_tier(mock_step_ms=50.0, max_batch_size=2) as live:
            request = request_of(*[[1, 2]] * 300, context={"timeout_ms": 200})
            assert isinstance(await refusal(live, request), DeadlineExceeded)
            assert isinstance(await refusal(live, request_of(*[[1, 2]] * 300), timeout=0.3), DeadlineExceeded)
            await live.until_idle()

    asyncio.run(main())


def test_a_lost_engine_is_unavailable() -> None:
    async def main() -> None:
        async with live_model_tier(mock_step_ms=50.0, max_batch_size=1) as live:
            call = asyncio.ensure_future(live.stub.Embed(request_of(*[[1, 2]] * 100)))
            async with asyncio.timeout(5):
                while not live.tier.engine.load.queued:
                    await asyncio.sleep(0.005)
            assert live.tier.engine._process is not None
            await live.tier.engine._process.kill()
            with pytest.raises(Exception) as caught:
                await call
            assert isinstance(from_rpc_error(caught.value), Unavailable)  # type: ignore[arg-type]

    asyncio.run(main())


def test_the_card_tells_what_can_be_asked_for() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            info = await live.stub.GetModelInfo(model_pb2.GetModelInfoRequest())
            assert list(info.model.capabilities) == [common_pb2.CAPABILITY_GENERATE, common_pb2.CAPABILITY_EMBED]
            assert info.model.embedding_size == EMBEDDING_SIZE
            assert info.pooling == model_pb2.POOLING_LAST

    asyncio.run(main())


def test_the_first_input_that_fails_fails_the_call() -> None:
    async def main() -> None:
        collector = VectorCollector(3)
        collector.on_end(1, Terminal(FinishReason.LENGTH, Usage(4), vector=b"1234"))
        collector.on_end(2, Terminal(FinishReason.ERROR, error=FailedPrecondition("first")))
        collector.on_end(0, Terminal(FinishReason.CANCELLED))
        with pytest.raises(FailedPrecondition, match="first"):
            await collector.vectors()

    asyncio.run(main())


def test_an_encoder_embeds_and_generates_nothing(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "tiny", "bert", pooling="cls_token")
    write_tokenizer(folder)
    reference = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = [[5, 6, 7], [8], list(range(10, 50))]

    async def main() -> None:
        settings = {"engine": "torch", "model": str(folder), "device": "cpu", "threads": 1}
        async with live_model_tier(**settings) as live:
            response = await live.stub.Embed(request_of(*inputs))
            for ids, found in zip(inputs, response.embeddings, strict=True):
                with torch.inference_mode():
                    first = reference(input_ids=torch.tensor([ids])).last_hidden_state[0, 0]
                torch.testing.assert_close(torch.tensor(list(found.values)), first / first.norm(), rtol=0, atol=1e-5)
            error = await refusal(live, request_of([1] * (POSITIONS + 1)))
            assert isinstance(error, InvalidRequest) and f"at most {POSITIONS}" in error.message
            session = await RawSession.open(live.stub)
            await session.submit({1: token_request([1, 2])})
            await session.read_until_finished(1)
            assert from_wire(session.finishes[1].error).reason == "MODEL_DOES_NOT_GENERATE"
            session.call.cancel()
            info = await live.stub.GetModelInfo(model_pb2.GetModelInfoRequest())
            card = info.model
            assert list(card.capabilities) == [common_pb2.CAPABILITY_EMBED] and card.embedding_size == 32
            assert (card.block_size, card.hash_scheme, card.max_context_tokens) == (0, "", POSITIONS)
            assert info.pooling == model_pb2.POOLING_CLS
            load = (await live.stub.GetLoad(model_pb2.GetLoadRequest())).load
            assert load.kv_blocks_total == load.kv_blocks_used == 0

    asyncio.run(main())


def test_an_encoder_whose_steps_are_shorter_than_its_inputs_says_so(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "tiny", "bert")
    write_tokenizer(folder)

    async def main() -> None:
        settings = {"engine": "torch", "model": str(folder), "device": "cpu", "threads": 1, "max_step_tokens": 16}
        async with live_model_tier(**settings) as live:
            assert len((await live.stub.Embed(request_of([1] * 16, [2] * 16, [3]))).embeddings) == 3
            error = await refusal(live, request_of([1] * 17))
            assert isinstance(error, InvalidRequest) and "max_step_tokens" in error.message
            info = await live.stub.GetModelInfo(model_pb2.GetModelInfoRequest())
            assert info.model.max_context_tokens == 16

    asyncio.run(main())
