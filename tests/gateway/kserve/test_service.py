import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fakes.inference import add_input, flag, infer_request, outputs_of, streamed
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake, live_gateway
from tests.fakes.tokenizer_tier import MODEL, FakeTokenizerTier
from tokenwire.errors import DeadlineExceeded, Internal, InvalidRequest, NotFound, TokenwireError, Unavailable
from tokenwire.kserve import inference_pb2 as pb
from tokenwire.kserve import inference_pb2_grpc
from tokenwire.requests import CancelReason
from tokenwire.status import from_rpc_error

Test = Callable[[FakeTokenizerTier, LiveGateway, Any], Awaitable[None]]


def run(test: Test, **settings: Any) -> None:
    async def main() -> None:
        async with gateway_over_fake(**settings) as (tier, live):
            await test(tier, live, inference_pb2_grpc.GRPCInferenceServiceStub(live.channel))

    asyncio.run(main())


async def refused(call: Awaitable[Any]) -> TokenwireError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def test_who_is_there() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        for name, version, ready in ((MODEL, "", True), (MODEL, "1", True), (MODEL, "2", False), ("other", "", False)):
            answer = await stub.ModelReady(pb.ModelReadyRequest(name=name, version=version))
            assert answer.ready == ready, (name, version)
        server = await stub.ServerMetadata(pb.ServerMetadataRequest())
        assert server.name == "tokenwire" and server.version and "parameters" in server.extensions
        model = await stub.ModelMetadata(pb.ModelMetadataRequest(name=MODEL))
        assert (model.name, list(model.versions), model.platform) == (MODEL, ["1"], "tokenwire")
        inputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in model.inputs}
        assert inputs["text_input"] == ("BYTES", [-1]) and inputs["stream"] == ("BOOL", [1])
        outputs = {tensor.name: tensor.datatype for tensor in model.outputs}
        assert outputs["text_output"] == "BYTES" and outputs["num_output_tokens"] == "UINT32"

    run(test)


def test_without_a_tier_it_lives_and_is_not_ready() -> None:
    async def main() -> None:
        async with live_gateway(wait=False) as live:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert not (await stub.ModelReady(pb.ModelReadyRequest(name=MODEL))).ready
            assert isinstance(await refused(stub.ModelInfer(infer_request("a"))), Unavailable)
            assert isinstance(await refused(stub.ModelMetadata(pb.ModelMetadataRequest(name=MODEL))), Unavailable)

    asyncio.run(main())


def test_reflection_lists_the_service() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        reflection = reflection_pb2_grpc.ServerReflectionStub(live.channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        ]
        answers = [answer async for answer in reflection.ServerReflectionInfo(iter(asked))]
        names = [service.name for service in answers[0].list_services_response.service]
        assert "inference.GRPCInferenceService" in names
        assert answers[1].file_descriptor_response.file_descriptor_proto

    run(test)


def test_one_text() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        request = infer_request(
            "one two three", id="mine", model_name=MODEL, parameters={"max_tokens": 2, "priority": 1}
        )
        answer = await stub.ModelInfer(request)
        assert (answer.id, answer.model_name, answer.model_version) == ("mine", MODEL, "1")
        assert outputs_of(answer) == {
            "text_output": ["one two threeone two"],
            "finish_reason": ["length"],
            "num_input_tokens": [3],
            "num_output_tokens": [2],
        }
        assert all(list(output.shape) == [1] for output in answer.outputs)
        assert not answer.parameters
        sent = tier.requests[0]
        assert (sent.context.request_id, sent.context.priority, sent.model) == ("mine", 100, MODEL)
        assert sent.options.stop.max_tokens == 2
        await live.until(lambda: live.count("grpc.model_infer", "ok") == 1)

    run(test)


def test_several_texts_are_answered_in_order() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        request = flag(pb.ModelInferRequest(), "exclude_input_in_output")
        add_input(request, "text_input", "BYTES", [3, 1], [b"a b c", b"d", b"e f"])
        answer = await stub.ModelInfer(request)
        found = outputs_of(answer)
        assert found["text_output"] == ["a b c", "d", "e f"] and found["num_output_tokens"] == [3, 1, 2]
        assert found["finish_reason"] == ["stop"] * 3
        assert all(list(output.shape) == [3, 1] for output in answer.outputs)
        assert answer.model_name == MODEL and answer.id == ""

    run(test)


def test_choices_and_logprobs() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        request = infer_request("a b", parameters={"n": 2, "logprobs": 1})
        flag(flag(request, "return_logprobs"), "return_cumulative_logprob")
        found = outputs_of(await stub.ModelInfer(request))
        assert found["text_output"] == ["a ba b"] * 2 and found["num_output_tokens"] == [2, 2]
        assert found["logprobs"][0].startswith('[{"0": {"logprob": ') and len(found["cumulative_logprob"]) == 2
        assert tier.requests[0].options.output.logprobs == 1

    run(test)


@pytest.mark.parametrize(
    ("request_", "error", "field"),
    [
        (infer_request("a", model_name="other"), NotFound, None),
        (infer_request("a", model_name=MODEL, model_version="3"), NotFound, None),
        (infer_request(), InvalidRequest, "text_input"),
        (infer_request(""), InvalidRequest, "text_input"),
        (infer_request("a", "", "c"), InvalidRequest, "text_input[1]"),
        (infer_request("!bad"), InvalidRequest, "max_tokens"),
        (infer_request("a", parameters={"odd": 1}), InvalidRequest, "odd"),
        (infer_request("a", parameters={"tenant": "t" * 300}), InvalidRequest, "tenant"),
        (infer_request("!down"), Unavailable, None),
        (infer_request("!break a"), Internal, None),
        (infer_request("!late a"), DeadlineExceeded, None),
        (streamed("a"), InvalidRequest, "stream"),
        (infer_request("a", parameters={"triton_enable_empty_final_response": True}), InvalidRequest,
         "triton_enable_empty_final_response"),
        (infer_request(*["a"] * 5), InvalidRequest, "text_input"),
    ],
)  # fmt: skip
def test_errors_are_the_status_of_the_call(
    request_: pb.ModelInferRequest, error: type[TokenwireError], field: str | None
) -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        found = await refused(stub.ModelInfer(request_))
        assert isinstance(found, error), found
        if field is not None:
            assert found.violations[0].field == field and found.message.startswith(f"{field}")
        await live.until_idle()

    run(test, max_prompts=4)


def test_unknown_models_have_no_metadata() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        assert isinstance(await refused(stub.ModelMetadata(pb.ModelMetadataRequest(name="x"))), NotFound)
        assert isinstance(await refused(stub.ModelMetadata(pb.ModelMetadataRequest(name=MODEL, version="9"))), NotFound)

    run(test)


def test_one_bad_text_takes_the_others_back() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        found = await refused(stub.ModelInfer(infer_request("!hang", "!bad", "!hang")))
        assert isinstance(found, InvalidRequest)
        await tier.until(lambda: len(tier.cancels) == 2)
        await live.until_idle()

    run(test)


def test_a_client_that_goes_is_cancelled_below() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        call = stub.ModelInfer(infer_request("!hang"))
        await tier.until(lambda: tier.num_running == 1)
        call.cancel()
        await tier.until(lambda: tier.cancels == [CancelReason.CLIENT])
        await live.until(lambda: live.count("grpc.model_infer", "cancelled") == 1)

    run(test)


def test_the_calls_deadline_and_the_requests_own() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        tier.deaf = True
        for parameters, timeout in (({}, 0.4), ({"timeout": 100_000}, None)):
            found = await refused(stub.ModelInfer(infer_request("!hang", parameters=parameters), timeout=timeout))
            assert isinstance(found, DeadlineExceeded) and "the time given ran out" in found.message
        assert 0 < tier.requests[0].context.timeout_ms <= 400
        assert 0 < tier.requests[1].context.timeout_ms <= 100

    run(test)


@pytest.mark.parametrize("client_id", ["", "ä" * 3, "x" * 200, "line\nbreak"])
def test_any_id_comes_back(client_id: str) -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        call = stub.ModelInfer(infer_request("a", id=client_id), metadata=(("x-request-id", "theirs"),))
        assert (await call).id == client_id
        assert tier.requests[0].context.request_id == "theirs"
        assert ("x-request-id", "theirs") in list(await call.initial_metadata())

    run(test)


def test_two_requests_may_have_one_id() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        answers = await asyncio.gather(*(stub.ModelInfer(infer_request("a b", id="same")) for _ in range(3)))
        assert [answer.id for answer in answers] == ["same"] * 3

    run(test)


def test_bytes_that_are_no_message_are_refused() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, stub: Any) -> None:
        call = live.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert isinstance(await refused(call(b"\xff\xff\xff")), InvalidRequest)

    run(test)
