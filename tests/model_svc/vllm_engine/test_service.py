import asyncio
import contextlib
import dataclasses
import hashlib
import io
import json
import random
import sys
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import tokenizers
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto import vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2

from model_svc import server
from model_svc.engine.mock_runner import mock_token
from tests.fakes.live_model_tier import LiveTier, live_model_tier
from tests.fakes.tokenizers_trained import byte_level_bpe, write_folder
from tokenwire.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Overloaded,
    TokenwireError,
    Unsupported,
)
from tokenwire.status import from_rpc_error

Test = Callable[[LiveTier, Any], Awaitable[None]]
TOKENIZER = byte_level_bpe()
VOCAB_SIZE = TOKENIZER.get_vocab_size()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mock engine's model has this folder."""
    write_folder(tmp_path, TOKENIZER)
    config = {"model_type": "llama", "architectures": ["X"], "bos_token_id": 1, "pad_token_id": [2, 3]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    resolve = server.resolve
    monkeypatch.setattr(server, "resolve", lambda settings: (resolve(settings)[0], tmp_path))
    return tmp_path


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


def test_a_deadline_is_a_status() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answered(stub.Generate(request(max_tokens=8000), timeout=0.5))
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


def test_what_it_says_of_itself(folder: Path) -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        health = await stub.HealthCheck(pb.HealthCheckRequest())
        assert health.healthy
        info = await stub.GetModelInfo(pb.GetModelInfoRequest())
        assert info.model_path == info.tokenizer_path == str(folder)
        assert info.is_generation and info.vocab_size == VOCAB_SIZE and info.max_context_length == 8192
        assert (info.model_type, list(info.architectures), info.bos_token_id) == ("llama", ["X"], 1)
        assert info.pad_token_id == 2 and info.max_req_input_len == 8191 and not info.default_sampling_params_json
        server_info = await stub.GetServerInfo(pb.GetServerInfoRequest())
        assert server_info.server_type == "vllm-grpc" and server_info.data_parallel_size == 1
        assert server_info.block_size == 16 and server_info.max_num_seqs == 64 and not server_info.active_requests
        loads = await stub.GetLoads(pb.GetLoadsRequest(include=["core"]))
        assert loads.dp_rank_count == 1 and loads.loads[0].max_total_num_tokens == 65_536 * 16
        assert isinstance(await refused(stub.GetLoads(pb.GetLoadsRequest(dp_rank=1))), NotFound)

    run(test)


def test_loads_tell_what_runs() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        call = stub.Generate(request(max_tokens=5000))
        await call.read()
        (load,) = (await stub.GetLoads(pb.GetLoadsRequest(dp_rank=0))).loads
        assert load.num_running_reqs == load.num_total_reqs == 1 and load.num_used_tokens > 0
        assert 0 < load.token_usage < 1 and load.utilization == 1 / 64
        assert (await stub.GetServerInfo(pb.GetServerInfoRequest())).active_requests == 1
        call.cancel()

    run(test)


def test_model_defaults_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        info = live.tier.engine.info
        defaults = dataclasses.replace(info.sampling_defaults, temperature=0.6, top_k=20)
        monkeypatch.setattr(live.tier.engine, "_info", dataclasses.replace(info, sampling_defaults=defaults))
        found = await stub.GetModelInfo(pb.GetModelInfoRequest())
        assert json.loads(found.default_sampling_params_json) == {"temperature": 0.6, "top_k": 20}

    run(test)


def test_the_tokenizer_travels_as_a_zip(folder: Path) -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        chunks = [chunk async for chunk in stub.GetTokenizer(common_pb2.GetTokenizerRequest())]
        data = b"".join(chunk.data for chunk in chunks)
        assert [chunk.sha256 for chunk in chunks] == [""] * (len(chunks) - 1) + [hashlib.sha256(data).hexdigest()]
        with zipfile.ZipFile(io.BytesIO(data)) as bundle:
            assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(bundle.namelist())
            loaded = tokenizers.Tokenizer.from_str(bundle.read("tokenizer.json").decode())
        assert loaded.encode("The capital").ids == TOKENIZER.encode("The capital").ids

    run(test)


def test_without_a_tokenizer_there_is_none_to_send() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        assert isinstance(await refused(stub.GetTokenizer(common_pb2.GetTokenizerRequest())), NotFound)

    run(test)


def test_what_is_not_built_says_so() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        for call in (
            stub.FlushCache(common_pb2.FlushCacheRequest()),
            stub.StartProfile(common_pb2.StartProfileRequest()),
            stub.StopProfile(common_pb2.StopProfileRequest()),
            stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest()),
        ):
            found = await refused(call)
            assert isinstance(found, Unsupported) and "is not built" in found.message

    run(test)


def test_it_is_off_unless_asked_for_and_healthy_when_on() -> None:
    async def status(**settings: Any) -> int:
        async with live_model_tier(**settings) as live:
            check = health_pb2.HealthCheckRequest(service="vllm.grpc.engine.VllmEngine")
            answer = await health_pb2_grpc.HealthStub(live.channel).Check(check)
            return int(answer.status)

    assert asyncio.run(status(vllm_engine=True)) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        asyncio.run(status())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_an_engine_that_is_down_is_not_healthy() -> None:
    async def test(live: LiveTier, stub: Any) -> None:
        live.tier.state.draining = True
        health = await stub.HealthCheck(pb.HealthCheckRequest())
        assert not health.healthy and "shutting down" in health.message
        live.tier.state.draining = False
        live.tier.engine._info, info = None, live.tier.engine._info
        health = await stub.HealthCheck(pb.HealthCheckRequest())
        assert not health.healthy and "being restarted" in health.message
        live.tier.engine._info = info

    run(test)


def test_without_the_package_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("model_svc.vllm_engine", "smg_grpc_proto"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "smg_grpc_proto", None)
    with pytest.raises(FailedPrecondition, match=r"pip install 'tokenwire\[smg\]'") as caught:
        server.vllm_engine_module()
    assert caught.value.reason == "PACKAGE_MISSING"
