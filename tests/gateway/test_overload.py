"""Far more requests than there is room for, at once: what was let in is served whole, the others hear no at once."""

import asyncio
from collections import Counter
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.fakes.live_gateway import generate_request
from tests.fakes.whole_stack import whole_stack
from tokenwire.v1 import common_pb2

ROOM = 8
NUM_TOKENS = 10


def test_http_serves_what_fits_and_refuses_the_rest_with_a_time_to_come_back(trained_folder: Path) -> None:
    async def main() -> None:
        settings = {"max_concurrent_requests": ROOM}
        async with whole_stack(trained_folder, gateway=settings, mock_step_ms=20.0, max_batch_size=4) as stack:
            most = 0

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, stack.gateway.server.backends.room.num_outputs)
                    await asyncio.sleep(0)

            watcher = asyncio.create_task(watch())
            asked = {"prompt": "hello", "max_tokens": NUM_TOKENS, "ignore_eos": True}
            responses = await asyncio.gather(
                *(stack.gateway.http.post("/v1/completions", json=asked) for _ in range(10 * ROOM))
            )
            watcher.cancel()
            found = Counter(response.status_code for response in responses)
            assert found[200] >= ROOM and found[200] + found[429] == 10 * ROOM and most == ROOM
            for response in responses:
                if response.status_code == 200:
                    assert response.json()["usage"]["completion_tokens"] == NUM_TOKENS
                else:
                    assert response.headers["retry-after"] == "1"
                    assert response.json()["error"]["code"] == "too_many_requests"
            await stack.until_idle()

    asyncio.run(main())


def test_grpc_refuses_with_retry_info_and_quota_failure(trained_folder: Path) -> None:
    async def main() -> None:
        settings = {"max_concurrent_requests": ROOM}
        async with whole_stack(trained_folder, gateway=settings, mock_step_ms=20.0) as stack:
            options = common_pb2.GenerationOptions()
            options.stop.max_tokens, options.stop.ignore_eos = NUM_TOKENS, True

            async def ask() -> str:
                call = stack.gateway.stub.Generate(generate_request("hello", options=options))
                try:
                    *_, last = [response async for response in call]
                except grpc.aio.AioRpcError as error:
                    status = await rpc_status.aio.from_call(call)
                    kinds = {detail.type_url.rpartition(".")[2] for detail in status.details}
                    assert kinds == {"ErrorInfo", "RetryInfo", "QuotaFailure"}
                    retry = error_details_pb2.RetryInfo()
                    assert any(detail.Unpack(retry) for detail in status.details) and retry.retry_delay.seconds == 1
                    return str(error.code().name)
                assert last.finish.usage.completion_tokens == NUM_TOKENS
                return "OK"

            found = Counter(await asyncio.gather(*(ask() for _ in range(5 * ROOM))))
            assert found["OK"] >= ROOM and found["OK"] + found["RESOURCE_EXHAUSTED"] == 5 * ROOM
            await stack.until_idle()

    asyncio.run(main())
