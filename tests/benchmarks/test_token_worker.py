"""The mock of the model tier: what a Session with it is told, over a real connection, and how it ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.contenders import token_worker
from benchmarks.contenders.token_worker import TokenWorker
from tests.fakes.loopback import on_loopback
from tokenwire.session import PROTOCOL_VERSION
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import model_pb2, model_pb2_grpc

VOCAB_SIZE = 100
Request = model_pb2.ModelServiceSessionRequest


@asynccontextmanager
async def session_with(folder: Path, step_s: float = 0.0) -> AsyncIterator[Any]:
    """A call that has said Hello, and what was answered."""
    server = grpc.aio.server()
    worker = TokenWorker(folder, step_s, VOCAB_SIZE)
    model_pb2_grpc.add_ModelServiceServicer_to_server(worker, server)
    async with on_loopback(server) as address, grpc.aio.insecure_channel(address) as channel:
        call = model_pb2_grpc.ModelServiceStub(channel).Session()
        await call.write(Request(hello=pb.Hello(protocol_version=PROTOCOL_VERSION)))
        yield call, await call.read()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, as far as the worker reads it."""
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0}}, "added_tokens": []}')
    return tmp_path


def submit(handle: int, num_tokens: int, num_choices: int = 1) -> model_pb2.TokenSubmit:
    options = pb.GenerationOptions(stop=pb.StopConditions(max_tokens=num_tokens), num_choices=num_choices)
    return model_pb2.TokenSubmit(handle=handle, request=model_pb2.TokenRequest(token_ids=[1, 2, 3], options=options))


async def until_ended(call: Any, num_sequences: int) -> tuple[dict[int, list[int]], dict[int, pb.Finish]]:
    """Tokens and ends by handle."""
    tokens: dict[int, list[int]] = {}
    ended: dict[int, pb.Finish] = {}
    while len(ended) < num_sequences:
        frame = await asyncio.wait_for(call.read(), 5)
        assert len(frame.handles) == len(frame.token_ids) and not frame.counts
        assert not set(frame.handles) & ended.keys(), "nothing comes behind a terminal event"
        for handle, token_id in zip(frame.handles, frame.token_ids, strict=True):
            tokens.setdefault(handle, []).append(token_id)
        ended |= {finish.handle: finish for finish in frame.finishes}
    return tokens, ended


@pytest.mark.parametrize("step_s", [0.0, 0.002])
def test_every_sequence_gets_its_tokens_and_one_end(folder: Path, step_s: float) -> None:
    async def main() -> None:
        async with session_with(folder, step_s) as (call, hello):
            (card,) = hello.hello.models
            assert card.vocab_size == VOCAB_SIZE and card.fingerprint.vocabulary.startswith("sha256:")
            await call.write(Request(submits=[submit(1, 3), submit(2, 5, num_choices=2)]))
            tokens, ended = await until_ended(call, 3)
            assert {handle: len(found) for handle, found in tokens.items()} == {1: 3, 2: 5, 3: 5}
            assert all(0 <= token_id < VOCAB_SIZE for found in tokens.values() for token_id in found)
            for handle, finish in ended.items():
                assert finish.reason == pb.FINISH_REASON_LENGTH
                assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (3, len(tokens[handle]))
                assert finish.timings.model.prefill_us >= step_s * 0.5e6
            await call.done_writing()
            assert await asyncio.wait_for(call.read(), 5) is grpc.aio.EOF

    asyncio.run(main())


def test_an_idle_session_is_leased_room_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_worker, "IDLE_S", 0.01)

    async def main() -> None:
        async with session_with(folder) as (call, _):
            for _ in range(3):
                frame = await asyncio.wait_for(call.read(), 5)
                assert frame.credit.requests > 0 and not frame.handles

    asyncio.run(main())


def test_what_is_taken_back_ends_as_cancelled(folder: Path) -> None:
    async def main() -> None:
        async with session_with(folder, 0.01) as (call, _):
            await call.write(Request(submits=[submit(1, 1_000_000)]))
            assert list((await call.read()).handles) == [1]
            await call.write(Request(cancels=[pb.Cancel(handle=1)]))
            _, ended = await until_ended(call, 1)
            assert ended[1].reason == pb.FINISH_REASON_CANCELLED and ended[1].usage.completion_tokens >= 1

    asyncio.run(main())
