"""Constraints over the model tier's wire: a real engine process with a tiny random model, and the mock engine."""

import asyncio
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from model_svc.grammar import compiler
from tests.fakes.constrained import text_of, tokenizer_of, write_text_model
from tests.fakes.live_model_tier import RawSession, live_model_tier, token_request
from tokenwire.errors import FailedPrecondition, InvalidRequest
from tokenwire.requests import CancelReason, FinishReason
from tokenwire.status import from_wire
from tokenwire.v1 import common_pb2, model_pb2
from tokenwire.wire import CANCEL_TO_WIRE, FINISH_FROM_WIRE

PROMPT = [70, 80, 90]
EXPRESSION = "[a-f]{3}-[0-9]{2}(x|yy)"


def constrained(*, max_tokens: int = 60, num_choices: int = 1, seed: int = 1, **form: Any) -> model_pb2.TokenRequest:
    request = token_request(PROMPT, max_tokens=max_tokens)
    request.options.constraint.MergeFrom(common_pb2.Constraint(**form))
    request.options.num_choices = num_choices
    request.options.sampling.temperature = 1.0
    request.options.sampling.seed = seed
    return request


async def check_drafts(live: Any) -> None:
    """Text that is fixed is drafted, on as many ranks as there are, and the tokens are those without drafts."""
    session, requests = await RawSession.open(live.stub), {}
    for handle in range(2, 10):
        requests[handle] = constrained(regex="the same words over and over: [a-z]{3}", seed=handle // 2)
        requests[handle].options.speculation = handle % 2 == 1
    await session.submit(requests)
    await session.read_until_finished(*requests)
    for handle in range(2, 10, 2):
        assert session.tokens[handle] == session.tokens[handle + 1]
    assert live.tier.engine.load.drafts.num_forced_accepted > 0


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_constrained_requests_are_obeyed_refused_cancelled_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_ranks: int
) -> None:
    folder = write_text_model(tmp_path / "text")
    tokenizer = tokenizer_of(folder)

    async def main() -> None:
        settings: dict[str, Any] = {
            "tensor_parallel": num_ranks,
            "device": "cpu",
            "dtype": "float32",
            "threads": 1,
            "kv_memory": 8 * 2**20,
            "block_size": 4,
            "speculation_adaptive": False,
        }
        async with live_model_tier(engine="torch", model=str(folder), **settings) as live:
            session = await RawSession.open(live.stub)
            await session.submit({1: constrained(regex=EXPRESSION, num_choices=4), 9: constrained(json_schema="{")})
            await session.read_until_finished(1, 2, 3, 4, 9)
            texts = {text_of(tokenizer, PROMPT, session.tokens[handle]) for handle in (1, 2, 3, 4)}
            assert all(re.fullmatch(EXPRESSION, text) for text in texts) and len(texts) > 1
            error = from_wire(session.finishes[9].error)
            assert isinstance(error, InvalidRequest)
            assert error.violations[0].field == "options.constraint.json_schema"

            whole = session.tokens[1]
            again = constrained(regex=EXPRESSION)
            again.token_ids.extend(whole[:3])
            again.num_generated_tokens = 3
            wrong = constrained(regex="[0-9]+")
            wrong.token_ids.extend(whole[:3])
            wrong.num_generated_tokens = 3
            await session.submit({20: again, 21: wrong})
            await session.read_until_finished(20, 21)
            assert whole[:3] + session.tokens[20] == whole
            assert session.finishes[20].usage.completion_tokens == len(whole)
            assert from_wire(session.finishes[21].error).reason == "CONSTRAINT_FAILED"

            await check_calls(live)
            await check_drafts(live)
            await check_cancel_while_compiling(live, session, monkeypatch)
            await live.until_idle()
            assert live.tier.state.grammars.known(None) == ""

    asyncio.run(main())


async def check_calls(live: Any) -> None:
    """A per-request stream, and what a refusal looks like as a call's status."""
    request = model_pb2.ModelServiceGenerateRequest(request=constrained(choice={"texts": ["yes", "no"]}))
    finishes = [r.finish async for r in live.stub.Generate(request) if r.HasField("finish")]
    assert [FINISH_FROM_WIRE[finish.reason] for finish in finishes] == [FinishReason.STOP_TOKEN]
    request = model_pb2.ModelServiceGenerateRequest(request=constrained(json_schema='{"items": {"not": {}}}'))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in live.stub.Generate(request):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(caught.value)
    assert status is not None and "at /items/not: not supported" in status.message


async def check_cancel_while_compiling(live: Any, session: RawSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice that is cancelled while its constraint is compiled ends at once; its sister goes on."""
    release = asyncio.Event()
    real = compiler.GrammarCompiler._compile

    async def slow(self: compiler.GrammarCompiler, constraint: Any) -> Any:
        await release.wait()
        return await real(self, constraint)

    monkeypatch.setattr(compiler.GrammarCompiler, "_compile", slow)
    await session.submit({30: constrained(regex="[a-c]{4}", num_choices=2), 40: constrained(regex=EXPRESSION)})
    await session.read_until_finished(40)
    cancel = common_pb2.Cancel(handle=30, reason=CANCEL_TO_WIRE[CancelReason.CLIENT])
    await session.send(cancels=[cancel])
    await session.read_until_finished(30)
    assert FINISH_FROM_WIRE[session.finishes[30].reason] is FinishReason.CANCELLED
    assert 31 not in session.finishes
    release.set()
    await session.read_until_finished(31)
    assert FINISH_FROM_WIRE[session.finishes[31].reason] is FinishReason.STOP_TOKEN
    other = await RawSession.open(live.stub)
    release.clear()
    await other.submit({1: constrained(regex="[a-d]{4}")})
    await asyncio.sleep(0.05)
    other.call.cancel()
    release.set()


def test_nothing_is_compiled_for_a_request_that_is_refused_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another model's name, or for want of room, on a session and on a call of its own."""
    compiled: list[Any] = []

    async def compile_to_nothing(constraint: Any) -> str:
        compiled.append(constraint)
        return ""

    async def main() -> None:
        async with live_model_tier(max_batch_size=1, max_queued_requests=1) as live:
            grammars = live.tier.state.grammars
            monkeypatch.setattr(grammars, "known", lambda constraint: None if constraint else "")
            monkeypatch.setattr(grammars, "compile", compile_to_nothing)
            other, fine = constrained(regex="a+"), constrained(regex="b+", max_tokens=2)
            other.model = "another"
            session = await RawSession.open(live.stub)
            await session.submit({1: other, 2: fine})
            await session.read_until_finished(1, 2)
            assert from_wire(session.finishes[1].error).reason == "MODEL_NOT_FOUND"
            assert FINISH_FROM_WIRE[session.finishes[2].reason] is FinishReason.LENGTH
            assert len(compiled) == 1

            live.tier.engine.pause(True)
            await session.submit({3: token_request(PROMPT, max_tokens=2), 4: constrained(regex="c+")})
            await session.read_until_finished(4)
            assert from_wire(session.finishes[4].error).reason == "QUEUE_FULL"
            for request, code in ((other, grpc.StatusCode.NOT_FOUND), (fine, grpc.StatusCode.RESOURCE_EXHAUSTED)):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await live.stub.Generate(model_pb2.ModelServiceGenerateRequest(request=request)).read()
                assert caught.value.code() is code
            assert len(compiled) == 1
            live.tier.engine.pause(False)
            await session.read_until_finished(3)

    asyncio.run(main())


def test_the_mock_engine_has_no_vocabulary_and_says_so() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            await session.submit({1: constrained(json_object=True), 2: token_request(PROMPT)})
            await session.read_until_finished(1, 2)
            error = from_wire(session.finishes[1].error)
            assert isinstance(error, FailedPrecondition)
            assert error.reason == "CONSTRAINTS_UNAVAILABLE" and "mock engine" in error.message
            assert FINISH_FROM_WIRE[session.finishes[2].reason] is FinishReason.LENGTH

    asyncio.run(main())
