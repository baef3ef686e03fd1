import asyncio
import os
import signal

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc

from model_svc.engine.mock_runner import mock_token
from tests.fakes.live_model_tier import live_model_tier, token_request
from tokenwire.errors import InvalidRequest
from tokenwire.requests import FinishReason
from tokenwire.status import STATUS_DETAILS_KEY, from_rpc_error
from tokenwire.v1 import model_pb2
from tokenwire.wire import FINISH_TO_WIRE


def test_generate_streams_tokens_and_one_finish_per_choice() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            request = token_request([1, 2, 3], max_tokens=4)
            request.options.num_choices = 2
            tokens: dict[int, list[int]] = {0: [], 1: []}
            finished: list[int] = []
            async for response in live.stub.Generate(model_pb2.ModelServiceGenerateRequest(request=request)):
                assert response.choice not in finished
                tokens[response.choice] += response.token_ids
                if response.HasField("finish"):
                    assert response.finish.reason == FINISH_TO_WIRE[FinishReason.LENGTH]
                    finished.append(response.choice)
            assert sorted(finished) == [0, 1]
            assert tokens[0] == tokens[1] == [mock_token([1, 2, 3], None, 0, i, 49_152) for i in range(4)]

    asyncio.run(main())


def test_the_error_of_a_call_is_its_status_with_details() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            call = live.stub.Generate(model_pb2.ModelServiceGenerateRequest(request=token_request([])))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            error = from_rpc_error(caught.value)
            assert isinstance(error, InvalidRequest) and error.violations[0].field == "token_ids"
            raw = dict(caught.value.trailing_metadata())[STATUS_DETAILS_KEY]
            packed = [d for d in Status.FromString(raw).details if d.Is(error_details_pb2.BadRequest.DESCRIPTOR)]
            assert len(packed) == 1, "other languages' libraries could not read the details"

    asyncio.run(main())


def test_a_call_that_goes_away_frees_its_sequence() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            request = token_request([1], max_tokens=8000)
            call = live.stub.Generate(model_pb2.ModelServiceGenerateRequest(request=request))
            await call.read()
            call.cancel()
            await live.until_idle()

    asyncio.run(main())


def test_the_calls_own_deadline_reaches_the_engine(call_s: float) -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            request = model_pb2.ModelServiceGenerateRequest(request=token_request([1], max_tokens=8000))
            responses = [response async for response in live.stub.Generate(request, timeout=call_s)]
            finish = responses[-1].finish
            assert finish.reason == FINISH_TO_WIRE[FinishReason.DEADLINE]
            assert finish.usage.completion_tokens == sum(len(response.token_ids) for response in responses) > 0
            await live.until_idle()

    asyncio.run(main())


def test_malformed_protobuf_and_invalid_utf8_are_invalid_arguments() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            for raw in (b"\x0a\x04\x12\x02\xff\xfe", b"\x0a\xff\xff\xff"):
                call = live.channel.unary_stream("/tokenwire.v1.ModelService/Generate")(raw)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert (await live.stub.GetLoad(model_pb2.GetLoadRequest())).load.running == 0

    asyncio.run(main())


def test_an_oversize_message_is_refused_and_the_server_goes_on() -> None:
    async def main() -> None:
        async with live_model_tier(max_message_bytes=4096) as live:
            request = model_pb2.ModelServiceGenerateRequest(request=token_request([300] * 5000))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.stub.Generate(request).read()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await live.stub.GetLoad(model_pb2.GetLoadRequest())

    asyncio.run(main())


def test_a_lost_engine_ends_its_requests_with_a_typed_error_and_comes_back() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            request = model_pb2.ModelServiceGenerateRequest(request=token_request([1], max_tokens=8000))
            info = await live.stub.GetModelInfo(model_pb2.GetModelInfoRequest())
            call = live.stub.Generate(request)
            await call.read()
            assert live.tier.engine.pid is not None
            os.kill(live.tier.engine.pid, signal.SIGKILL)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await call.read():
                    pass
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert from_rpc_error(caught.value).reason == "ENGINE_LOST"
            health = health_pb2_grpc.HealthStub(live.channel)
            async with asyncio.timeout(20):
                while (await health.Check(health_pb2.HealthCheckRequest())).status != 1:
                    await asyncio.sleep(0.02)
            again = await live.stub.GetModelInfo(model_pb2.GetModelInfoRequest())
            assert again.epoch != info.epoch
            request.request.options.stop.max_tokens = 2
            responses = [response async for response in live.stub.Generate(request)]
            assert responses[-1].HasField("finish")

    asyncio.run(main())
