"""Limits of tenants at a running gateway, over every protocol and in several workers."""

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from gateway.identity import keyring as keyring_module
from tests.fakes.entrances import (
    Metadata,
    grpc_get_tokenizer,
    grpc_list_models,
    grpc_tokenize,
    http_models,
    kserve_model_metadata,
)
from tests.fakes.identities import Callers
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake, generate_request
from tests.fakes.tokenizer_tier import MODEL, fake_tokenizer_tier
from tests.gateway.test_workers import gateway_workers
from tokenwire.errors import Overloaded
from tokenwire.status import STATUS_DETAILS_KEY
from tokenwire.v1 import common_pb2, tokenizer_pb2
from tokenwire.wire import terminal_from_wire

SLOW = 0.001
"""One request, and then none for a quarter of an hour."""


async def kserve_metadata(live: LiveGateway, headers: Metadata) -> None:
    await kserve_model_metadata(live, headers, model=MODEL)


async def ask(live: LiveGateway, tenant: str = "", prompt: str = "a b", **fields: Any) -> httpx.Response:
    return await live.http.post("/v1/completions", json={"prompt": prompt, "tenant": tenant, **fields})


def test_http_says_when_to_come_back_and_how_a_tenant_stands() -> None:
    async def main() -> None:
        async with gateway_over_fake(tenant_requests_per_s=SLOW, tenant_tokens_per_min=6000.0) as (_, live):
            response = await ask(live, "a", max_tokens=1000)
            assert response.status_code == 200
            assert response.headers["x-ratelimit-limit-requests"] == "1"
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
            assert response.headers["x-ratelimit-reset-requests"] == "16m40s"
            assert response.headers["x-ratelimit-limit-tokens"] == "6000"
            assert 4900 < int(response.headers["x-ratelimit-remaining-tokens"]) < 5000
            response = await ask(live, "a")
            assert response.status_code == 429
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "tenant_requests_per_s")
            assert 990 <= int(response.headers["retry-after"]) <= 1000
            assert response.headers["x-ratelimit-remaining-requests"] == "0"
            streamed = await ask(live, "b", stream=True)
            assert streamed.headers["x-ratelimit-limit-requests"] == "1" and streamed.text.endswith("[DONE]\n\n")
            assert "x-ratelimit-limit-requests" not in (await live.http.get("/healthz")).headers
            assert live.registry.get_sample_value(
                "tokenwire_gateway_limited_total", {"limit": "requests_per_s"}
            ) == 1  # fmt: skip

    asyncio.run(main())


def test_without_limits_nothing_is_said() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await ask(live, "a")
            assert not [name for name in response.headers if name.startswith("x-ratelimit")]

    asyncio.run(main())


def test_grpc_carries_retry_and_quota() -> None:
    async def main() -> None:
        async with gateway_over_fake(tenant_requests_per_s=SLOW) as (_, live):
            context = common_pb2.RequestContext(tenant="a")
            await live.generate("a b", context=context)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.generate("a b", context=context)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            trailing = dict(caught.value.trailing_metadata())
            retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
            details = Status.FromString(trailing[STATUS_DETAILS_KEY]).details
            assert any(detail.Unpack(retry) for detail in details) and any(detail.Unpack(quota) for detail in details)
            assert retry.retry_delay.seconds > 900
            assert quota.violations[0].subject == "TENANT_REQUESTS_PER_S"

    asyncio.run(main())


def test_each_request_of_a_session_counts_and_the_session_goes_on() -> None:
    async def main() -> None:
        async with gateway_over_fake(tenant_requests_per_s=SLOW) as (_, live):
            call = live.stub.Session()
            await call.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
            submits = [
                tokenizer_pb2.Submit(
                    handle=handle,
                    request=tokenizer_pb2.TextRequest(text="a", context=common_pb2.RequestContext(tenant=tenant)),
                )
                for handle, tenant in enumerate(("a", "a", "b"), 1)
            ]
            await call.write(tokenizer_pb2.SessionRequest(submits=submits))
            errors: dict[int, Any] = {}
            while len(errors) < 3:
                for finish in (await call.read()).finishes:
                    errors[finish.handle] = terminal_from_wire(finish).error
            assert isinstance(errors[2], Overloaded) and errors[1] is None and errors[3] is None
            call.cancel()

    asyncio.run(main())


def test_streams_at_once_end_with_their_clients() -> None:
    async def main() -> None:
        async with gateway_over_fake(tenant_max_streams=2) as (tier, live):
            calls = [
                live.stub.Generate(generate_request("!hang a", context=common_pb2.RequestContext(tenant="a")))
                for _ in range(2)
            ]
            await tier.until(lambda: tier.num_running == 2)
            assert (await ask(live, "a")).json()["error"]["code"] == "tenant_max_streams"
            assert (await ask(live, "b")).status_code == 200
            assert (await ask(live, "b", n=3, temperature=1)).status_code == 400
            calls[0].cancel()
            await live.until(lambda: live.server.backends.num_open == 1)
            assert (await ask(live, "a")).status_code == 200
            calls[1].cancel()
            await live.until_idle()

    asyncio.run(main())


def test_tokens_are_put_right_by_what_was_used_also_when_the_client_goes() -> None:
    """Twenty answers of six tokens fit a bucket that two estimates do not; so does what a client left behind."""

    async def main() -> None:
        async with gateway_over_fake(tenant_tokens_per_min=60_000.0) as (tier, live):
            for _ in range(20):
                assert (await ask(live, "a", "a b c", max_tokens=50_000)).status_code == 200
            call = live.stub.Generate(
                generate_request("!hang a b c", context=common_pb2.RequestContext(tenant="b"), options=most(59_000))
            )
            assert (await call.read()).delta.text
            assert (await ask(live, "b", max_tokens=59_000)).status_code == 429
            call.cancel()
            await live.until_idle()
            assert (await ask(live, "b", max_tokens=59_000)).status_code == 200

    asyncio.run(main())


def most(tokens: int) -> common_pb2.GenerationOptions:
    return common_pb2.GenerationOptions(stop={"max_tokens": tokens})


def test_limits_of_single_tenants_come_from_the_file_and_follow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring_module, "LOOK_AGAIN_S", 0.0)
    callers = Callers.write(tmp_path / "identities.json")
    callers.whole["tenants"] = {"alice": {"requests_per_s": SLOW}}
    callers.save()

    async def main() -> None:
        async with gateway_over_fake(identity_file=str(callers.path)) as (_, live):

            async def asked(name: str) -> int:
                body = {"prompt": "a b"}
                response = await live.http.post("/v1/completions", json=body, headers=callers.header(name))
                return response.status_code

            assert [await asked("alice") for _ in range(2)] == [200, 429]
            assert [await asked("root") for _ in range(5)] == [200] * 5
            callers.whole["tenants"] = {"alice": {"requests_per_s": 0}, "root": {"max_streams": 1}}
            callers.save()
            assert [await asked("alice") for _ in range(5)] == [200] * 5

    asyncio.run(main())


@pytest.mark.parametrize("enter", [grpc_tokenize, grpc_list_models, grpc_get_tokenizer, http_models, kserve_metadata])
def test_calls_that_generate_nothing_count_as_requests(enter: Any) -> None:
    async def main() -> None:
        async with gateway_over_fake(tenant_requests_per_s=SLOW) as (_, live):
            await enter(live, ())
            with pytest.raises(Overloaded) as caught:
                await enter(live, ())
            assert caught.value.reason == "TENANT_REQUESTS_PER_S"

    asyncio.run(main())


def test_workers_hold_tenants_to_their_limits_together() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier:
            async with gateway_workers(tier, "--tenant-requests-per-s", "0.01") as workers:
                answers = [await workers.chat() for _ in range(20)]
                assert sorted(answer.status_code for answer in answers) == [200] + [429] * 19
                assert json.loads(answers[-1].text)["error"]["code"] == "tenant_requests_per_s"

    asyncio.run(main())


def test_what_a_killed_worker_had_open_is_its_tenants_again_once_it_is_started_again() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier, gateway_workers(tier, "--tenant-max-streams", "3") as workers:
            async with httpx.AsyncClient(trust_env=False, timeout=30, base_url=workers.url) as client:

                async def hold() -> None:
                    with contextlib.suppress(httpx.HTTPError):
                        await client.post("/generate", json={"inputs": "!hold a", "stream": True})

                held = [asyncio.ensure_future(hold()) for _ in range(3)]
                await tier.until(lambda: tier.num_running == 3)
                assert {(await workers.chat()).status_code for _ in range(4)} == {429}, "whichever worker is asked"
                killed = workers.pids()
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
                await asyncio.gather(*held)
                async with asyncio.timeout(60):
                    while True:
                        with contextlib.suppress(httpx.HTTPError):
                            if (await workers.chat()).status_code == 200 and len(workers.pids() - killed) == 2:
                                break
                        await asyncio.sleep(0.05)
                await workers.until_ready(2)  # one that has answered says nothing of the other
                again = [asyncio.ensure_future(hold()) for _ in range(3)]
                await tier.until(lambda: tier.num_running == 3)
                assert (await workers.chat()).status_code == 429
                for task in again:
                    task.cancel()
                await asyncio.gather(*again, return_exceptions=True)

    asyncio.run(main())
