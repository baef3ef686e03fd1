"""What each prompt of a call repeats is bounded before it is repeated, whatever it came by."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from gateway.text_requests import MAX_REPEATED_BYTES, TextRequest, refuse_repeated, text_requests
from tests.fakes.inference import infer_request
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake, generate_request
from tests.fakes.web_caller import FORMS, WebCaller
from tokenwire.constraints import json_schema
from tokenwire.errors import InvalidRequest
from tokenwire.kserve import inference_pb2_grpc
from tokenwire.requests import GenerationOptions
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2 as pb

SCHEMA = '{"description": "' + "x" * 200_000 + '"}'
NUM_PROMPTS = MAX_REPEATED_BYTES // len(SCHEMA) + 1
PROMPTS = ["a"] * NUM_PROMPTS
REFUSED = rf"bytes for each of {NUM_PROMPTS} prompts are too many: at most {MAX_REPEATED_BYTES} in all; send fewer"


def options() -> pb.GenerationOptions:
    return pb.GenerationOptions(constraint=pb.Constraint(json_schema=SCHEMA))


async def over_grpc(live: LiveGateway) -> None:
    await live.generate(*PROMPTS, options=options())


async def over_kserve(live: LiveGateway) -> None:
    parameters = {"structured_outputs": '{"json": ' + SCHEMA + "}"}
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)
    await stub.ModelInfer(infer_request(*PROMPTS, parameters=parameters))


def over_http(path: str, field: str) -> Callable[[LiveGateway], Awaitable[None]]:
    async def call(live: LiveGateway) -> None:
        response = await live.http.post(path, json={field: PROMPTS, "structured_outputs": {"json": SCHEMA}})
        error = response.json()["error"]
        assert response.status_code == 400 and error["code"] == "options_too_large", response.text
        raise InvalidRequest(error["message"], reason="OPTIONS_TOO_LARGE")

    return call


def over_the_web(form: str) -> Callable[[LiveGateway], Awaitable[None]]:
    async def call(live: LiveGateway) -> None:
        request = generate_request(*PROMPTS, options=options())
        (await WebCaller(live.http, form).call("Generate", request)).or_raise()

    return call


@pytest.mark.parametrize(
    "call",
    [
        over_grpc,
        over_kserve,
        over_http("/v1/completions", "prompt"),
        over_http("/generate", "inputs"),
        *(over_the_web(form) for form in FORMS),
    ],
    ids=["grpc", "kserve", "completions", "generate", *FORMS],
)
def test_many_prompts_of_long_options_are_refused_and_nothing_goes_down(call: Callable[[LiveGateway], Any]) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            with pytest.raises((InvalidRequest, grpc.aio.AioRpcError)) as caught:
                await call(live)
            error = caught.value if isinstance(caught.value, InvalidRequest) else from_rpc_error(caught.value)
            assert isinstance(error, InvalidRequest) and error.reason == "OPTIONS_TOO_LARGE"
            with pytest.raises(InvalidRequest, match=REFUSED):
                raise error
            assert not tier.requests and live.server.backends.num_open == 0

    asyncio.run(main())


def test_the_bound_is_on_all_bytes_together_and_one_prompt_has_none() -> None:
    shared = TextRequest(cache_salt="x" * (MAX_REPEATED_BYTES // 2 - 8))
    assert 2 * shared.ByteSize() <= MAX_REPEATED_BYTES
    refuse_repeated(2, shared)
    with pytest.raises(InvalidRequest):
        refuse_repeated(3, shared)
    shared.cache_salt *= 4
    refuse_repeated(1, shared)


def test_each_prompt_has_a_request_of_its_own() -> None:
    asked = GenerationOptions(constraint=json_schema("{}"))
    one, two = text_requests(["a", (1, 2)], model="m", options=asked, cache_salt="s", split_special_tokens=True)
    assert (one.text, list(two.token_ids.ids)) == ("a", [1, 2]) and not two.text
    assert one.model == two.model == "m" and one.cache_salt == two.cache_salt == "s"
    assert one.options == two.options and one.options is not two.options and one.split_special_tokens
