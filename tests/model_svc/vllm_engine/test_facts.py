"""What the service says of itself and its model, and what it does not do."""

import asyncio
import dataclasses
import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import grpc
import pytest
import tokenizers
from grpc_health.v1 import health_pb2, health_pb2_grpc
from smg_grpc_proto import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import common_pb2

from model_svc import server
from tests.fakes.live_model_tier import LiveTier, live_model_tier
from tests.fakes.vllm_engine import TOKENIZER, VOCAB_SIZE, refused, request, run
from tokenwire.errors import (
    FailedPrecondition,
    NotFound,
    Unsupported,
)


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
