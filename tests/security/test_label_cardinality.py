"""What a client writes becomes no label: the number of series stays where it was, however many values are tried."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.entrances import asking, bearer
from tests.fakes.identities import Callers, Issuer
from tests.fakes.live_gateway import LiveGateway, generate_request
from tests.fakes.live_model_tier import RawSession, token_request
from tests.fakes.live_tokenizer_tier import TextPeer, text_request
from tests.fakes.whole_stack import WholeStack, whole_stack
from tests.gateway.test_long_names import by_infer, by_infer_stream, by_model_metadata, by_session
from tokenwire.v1 import common_pb2, tokenizer_pb2

NUM_VALUES = 100
"""With 10,000, tried by hand against a real stack, there are no more either."""
FEW = 3
"""Values of which each way has made its series, those of its refusals among them."""
AT_ONCE = 20
Attack = Callable[[WholeStack, str], Awaitable[None]]


async def unknown_methods(stack: WholeStack, value: str) -> None:
    for channel in (stack.gateway.channel, stack.tokenizer.channel, stack.model.channel):
        for service in ("tokenwire.v1.GenerationService", value):
            with suppress(grpc.aio.AioRpcError):
                await channel.unary_unary(f"/{service}/{value}")(b"")


async def names_over_grpc(stack: WholeStack, value: str) -> None:
    context = common_pb2.RequestContext(tenant=value, request_id=value, traceparent=value)
    for model, adapter in ((value, ""), ("", value), ("", "")):
        options = common_pb2.GenerationOptions(adapter=adapter)
        options.stop.max_tokens = 1
        options.stop.stop_strings.append(value)
        request = generate_request(value, model=model, context=context, options=options)
        with suppress(grpc.aio.AioRpcError):
            call = stack.gateway.stub.Generate(request, metadata=(("x-request-id", value), (value, value)))
            assert [answer async for answer in call]


async def names_of_other_protocols(stack: WholeStack, value: str) -> None:
    for ask in (by_infer, by_infer_stream, by_model_metadata, by_session):
        await ask(stack.gateway, value)


async def http_requests(stack: WholeStack, value: str) -> None:
    http, headers = stack.gateway.http, {"user-agent": value, "x-request-id": value, value: value, "host": value}
    for path in (f"/{value}", f"/v1/models/{value}", f"/page/{value}", f"/?{value}={value}"):
        await http.get(path, headers=headers)
    await http.request(value.upper(), "/v1/completions", headers=headers)
    bodies: list[dict[str, Any]] = [{"model": value}, {value: value}, {"user": value, "max_tokens": 1}, {"stop": value}]
    for body in bodies:
        await http.post("/v1/completions", json={"prompt": value, **body}, headers=headers)
    await http.post(f"/tokenwire.v1.GenerationService/{value}", content=b"{}", headers={"content-type": value})


async def the_tokenizer_tier_itself(stack: WholeStack, value: str) -> None:
    peer = await TextPeer.open(stack.tokenizer)
    for handle, request in enumerate((text_request(value, tenant=value), text_request(value, request_id=value)), 1):
        request.model = value if handle == 2 else ""
        request.options.stop.max_tokens = 1
        await peer.submit(handle, request)
        await peer.end(handle)
    peer.call.cancel()
    with suppress(grpc.aio.AioRpcError):
        await stack.tokenizer.stub.Tokenize(tokenizer_pb2.TokenizeRequest(model=value, texts=[value]))


async def the_model_tier_itself(stack: WholeStack, value: str) -> None:
    session = await RawSession.open(stack.model.stub)
    requests = {1: token_request([5], max_tokens=1, tenant=value), 2: token_request([5], request_id=value)}
    requests[2].options.adapter = value
    await session.submit(requests)
    await session.read_until_finished(1, 2)
    session.call.cancel()


ATTACKS = (
    unknown_methods, names_over_grpc, names_of_other_protocols, http_requests, the_tokenizer_tier_itself,
    the_model_tier_itself,
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_series_stay_as_many(trained_folder: Path, attack: Attack) -> None:
    async def main() -> None:
        async with whole_stack(trained_folder) as stack:

            def num_series() -> tuple[int, ...]:
                registries = (stack.gateway.registry, stack.tokenizer.registry, stack.model.registry)
                return tuple(sum(len(metric.samples) for metric in each.collect()) for each in registries)

            for number in range(FEW):
                await attack(stack, f"few-{number}")
            before = num_series()
            for start in range(0, NUM_VALUES, AT_ONCE):
                await asyncio.gather(*(attack(stack, f"value-{number}") for number in range(start, start + AT_ONCE)))
            await stack.until_idle()
            assert num_series() == before
            said = (await stack.gateway.http.get("/metrics")).text
            assert "value-" not in said and "few-" not in said

    asyncio.run(main())


def test_what_callers_show_is_no_label(callers: Callers, issuer: Issuer) -> None:
    async def main() -> None:
        async with asking(callers, issuer, tenant_requests_per_s=1, tenant_max_streams=1) as (_, live):
            for number in range(FEW):
                await ask(live, f"few-{number}")
            before = len(await metrics(live))
            for number in range(NUM_VALUES):
                await ask(live, f"value-{number}")
            found = await metrics(live)
            assert len(found) == before
            assert not [line for line in found if "value-" in line or "few-" in line]

    async def ask(live: LiveGateway, value: str) -> None:
        """A wrong key, a token of a tenant of its own that goes over its limits, and a tenant that a front names."""
        for shown in (value, issuer.token(sub=value), issuer.token(tenant=value), callers.keys["front"]):
            for _ in range(2):
                body = {"model": "echo", "prompt": value, "max_tokens": 1}
                await live.http.post("/v1/completions", json=body, headers=list(bearer(shown)))
            context = common_pb2.RequestContext(tenant=value)
            call = live.stub.Generate(generate_request(value, context=context), metadata=bearer(shown))
            with suppress(grpc.aio.AioRpcError):
                assert [answer async for answer in call]

    async def metrics(live: LiveGateway) -> list[str]:
        answer = await live.http.get("/metrics", headers=list(bearer(callers.keys["root"])))
        return [line for line in answer.text.splitlines() if not line.startswith("#")]

    asyncio.run(main())
