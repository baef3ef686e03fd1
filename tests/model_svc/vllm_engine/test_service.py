import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from smg_grpc_proto import vllm_engine_pb2 as pb

from tests.fakes.live_model_tier import LiveTier
from tests.fakes.vllm_engine import TOKENIZER, VOCAB_SIZE, answered, refused, request, run, tokens_of
from tokenwire.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    Overloaded,
    TokenwireError,
    Unsupported,
)
from tokenwire.status import from_rpc_error


@pytest.mark.parametrize("stream", [True, False])
def test_generate(stream: bool) -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        tokens, (end,) = await answered(stub.Generate(request(stream=stream)))
        assert tokens == (tokens_of() if stream else [])
        assert list(end.output_ids) == tokens_of() and end.finish_reason == "length"
        assert (end.prompt_tokens, end.completion_tokens) == (3, 4)

    run(test)


def test_choices_have_their_index() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        _, ends = await answered(stub.Generate(request(n=3, temperature=1.0, seed=4)))
        assert sorted(end.index for end in ends) == [0, 1, 2]
        assert len({tuple(end.output_ids) for end in ends}) == 3
        _, again = await answered(stub.Generate(request(n=3, temperature=1.0, seed=4)))
        assert {tuple(end.output_ids) for end in again} == {tuple(end.output_ids) for end in ends}

    run(test)


def test_a_cached_prompt_is_counted() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        ids = list(range(1, 50))
        await answered(stub.Generate(request(*ids)))
        _, (end,) = await answered(stub.Generate(request(*ids)))
        assert end.cached_tokens == 48

    run(test)


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_string_ends_the_work(folder: Path, stream: bool) -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        ids = tokens_of(num=40)
        words = (TOKENIZER.decode([token]).strip() for token in ids[8:])
        stop = next(word for word in words if word.isascii() and word.isalpha() and len(word) > 2)
        tokens, (end,) = await answered(stub.Generate(request(stop=[stop], max_tokens=5000, stream=stream)))
        found = list(end.output_ids)
        assert found == ids[: len(found)] and (tokens == found or not stream)
        assert stop in TOKENIZER.decode(found) and stop not in TOKENIZER.decode(found[:-1])
        assert (end.finish_reason, end.matched_stop_str) == ("stop", stop)
        await live.until_idle()

    run(test)


def test_stop_strings_need_a_tokenizer() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        found = await refused(stub.Generate(request(stop=["x"])))
        assert isinstance(found, InvalidRequest) and found.violations[0].field == "sampling_params.stop"

    run(test)


def test_stop_strings_are_refused_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        async def compiled(constraint: Any) -> str:
            raise AssertionError("nothing is to be compiled")

        monkeypatch.setattr(live.tier.grammars, "compile", compiled)
        found = await refused(stub.Generate(request(stop=["x"], regex="a+")))
        assert isinstance(found, InvalidRequest) and found.violations[0].field == "sampling_params.stop"

    run(test)


def test_stop_tokens() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        ids = tokens_of()
        tokens, (end,) = await answered(stub.Generate(request(stop_token_ids=[ids[2]])))
        assert tokens == ids[:2] and (end.finish_reason, end.matched_token_id) == ("stop", ids[2])

    run(test)


def test_abort_ends_a_request_with_its_last_message() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        call = stub.Generate(request(request_id="gone", max_tokens=5000))
        await call.read()
        await stub.Abort(pb.AbortRequest(request_ids=["unknown", "gone"]))
        while (response := await call.read()).WhichOneof("response") == "chunk":
            pass
        assert response.complete.finish_reason == "abort"
        assert await call.read() is grpc.aio.EOF
        await live.until_idle()
        _, (end,) = await answered(stub.Generate(request(request_id="gone")))
        assert end.finish_reason == "length", "the id is free again"

    run(test)


def test_abort_while_a_constraint_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        go_on = asyncio.Event()
        compiling = asyncio.Event()

        async def compile_slowly(constraint: Any) -> str:
            compiling.set()
            await go_on.wait()
            return ""

        monkeypatch.setattr(live.tier.grammars, "known", lambda _: None)
        monkeypatch.setattr(live.tier.grammars, "compile", compile_slowly)
        for request_id in ("aborted", "cancelled"):
            compiling.clear()
            call = stub.Generate(request(request_id=request_id, n=2, max_tokens=5000))
            reading = asyncio.ensure_future(answered(call))
            await compiling.wait()
            if request_id == "cancelled":
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
                break
            await stub.Abort(pb.AbortRequest(request_ids=[request_id]))
            go_on.set()
            tokens, ends = await reading
            assert not tokens and [end.finish_reason for end in ends] == ["abort", "abort"]
            go_on.clear()
        async with asyncio.timeout(5):
            while (await stub.GetServerInfo(pb.GetServerInfoRequest())).active_requests:
                await asyncio.sleep(0.01)

    run(test)


def test_nothing_is_compiled_for_a_request_that_is_refused_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        async def compile_in_vain(constraint: Any) -> str:
            raise AssertionError("compiled in vain")

        monkeypatch.setattr(live.tier.grammars, "known", lambda _: None)
        monkeypatch.setattr(live.tier.grammars, "compile", compile_in_vain)
        error = await refused(stub.Generate(request(VOCAB_SIZE)))
        assert isinstance(error, InvalidRequest) and "outside the vocabulary" in error.message

    run(test)


def test_a_call_that_is_cancelled_frees_its_sequence() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        call = stub.Generate(request(max_tokens=5000))
        await call.read()
        call.cancel()
        await live.until_idle()

    run(test)


def test_two_running_requests_may_not_share_an_id() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        first = stub.Generate(request(max_tokens=5000))
        await first.read()
        assert isinstance(await refused(stub.Generate(request())), AlreadyExists)
        first.cancel()

    run(test)


def test_a_deadline_is_a_status(call_s: float) -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answered(stub.Generate(request(max_tokens=8000), timeout=call_s))
        found = from_rpc_error(caught.value)
        assert isinstance(found, DeadlineExceeded) and "the time given ran out after" in found.message

    run(test, mock_step_ms=20.0)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (pb.GenerateRequest(request_id="r"), InvalidRequest, "token_ids: it is empty"),
        (pb.GenerateRequest(text="hi"), Unsupported, "text: the model tier takes token ids"),
        (request(VOCAB_SIZE), InvalidRequest, "outside the vocabulary"),
        (request(*[1] * 9000), InvalidRequest, "do not fit the context"),
        (request(max_tokens=9000), InvalidRequest, "do not fit"),
        (request(json_schema="{}"), FailedPrecondition, "mock"),
        (request(structural_tag="{}"), Unsupported, "sampling_params.structural_tag"),
        (request(request_id="é"), InvalidRequest, "request_id"),
    ],
)
def test_errors_are_the_status(given: pb.GenerateRequest, error: type[TokenwireError], said: str) -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        found = await refused(stub.Generate(given))
        assert isinstance(found, error) and said in found.message
        _, (end,) = await answered(stub.Generate(request()))
        assert end.finish_reason == "length"

    run(test)


def test_damaged_requests_have_a_status_of_theirs() -> None:
    """And the stream that runs beside them goes on."""

    async def test(live: LiveTier, stub: Any) -> None:
        beside = stub.Generate(request(request_id="beside", max_tokens=5000))
        await beside.read()
        raw = live.channel.unary_stream("/vllm.grpc.engine.VllmEngine/Generate")
        rng = random.Random(4)
        whole = request(5, 6, stop_token_ids=[1], seed=3, n=2, logprobs=1).SerializeToString()
        allowed = {"INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION"}
        refused = 0
        for _ in range(200):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 4)):
                place = rng.randrange(len(data))
                data[place : place + rng.randrange(4)] = rng.randbytes(rng.randrange(4))
            call = raw(bytes(data), timeout=20)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()
            call.cancel()
            code = await call.code()
            refused += code.name in allowed
            assert code.name in allowed | {"OK", "CANCELLED"}, (code, await call.details(), bytes(data))
        assert refused > 50
        assert (await beside.read()).chunk.token_ids
        beside.cancel()

    run(test)


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        calls = [stub.Generate(request(request_id=str(n), max_tokens=5000)) for n in range(8)]
        errors = []
        for call in calls:
            try:
                await call.read()
            except grpc.aio.AioRpcError as error:
                errors.append(from_rpc_error(error))
            if errors:
                break
        assert isinstance(errors[0], Overloaded) and errors[0].retry_after_s
        for call in calls:
            call.cancel()

    run(test, max_batch_size=1, max_queued_requests=1)


def test_embed() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        found = await stub.Embed(pb.EmbedRequest(request_id="e", tokenized=pb.TokenizedInput(input_ids=[1, 2, 3])))
        assert found.prompt_tokens == 3 and found.embedding_dim == len(found.embedding) > 0
        assert sum(value * value for value in found.embedding) == pytest.approx(1.0, abs=1e-5)
        assert isinstance(await refused(stub.Embed(pb.EmbedRequest())), InvalidRequest)

    run(test)
