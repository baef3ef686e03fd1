"""Hundreds of damaged requests: each has its status or its error message, and what runs beside them is undisturbed."""

import asyncio
import random
from typing import Any

import grpc

from tests.fakes.inference import add_input, ended, flag, infer_request, outputs_of, raw_bytes, streamed
from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.tokenizer_tier import MODEL
from tokenwire.kserve import inference_pb2 as pb
from tokenwire.kserve import inference_pb2_grpc

NUM_REQUESTS = 300
ALLOWED = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


def whole_requests() -> list[pb.ModelInferRequest]:
    raw = pb.ModelInferRequest(model_name=MODEL, id="1", raw_input_contents=[raw_bytes(b"a b", b"c"), b"\x01"])
    raw.inputs.add(name="text_input", datatype="BYTES", shape=[2, 1])
    raw.inputs.add(name="exclude_input_in_output", datatype="BOOL", shape=[1])
    full = infer_request("a b c", id="2", parameters={"temperature": 0.5, "max_tokens": 3, "priority": 5})
    add_input(full, "sampling_parameters", "BYTES", [1], [b'{"top_p": 0.5, "stop": ["x"], "logit_bias": {"5": 1.0}}'])
    add_input(full, "top_k", "INT32", [1], [5])
    flag(full, "return_logprobs")
    full.outputs.add(name="text_output")
    return [raw, full]


def damaged(rng: random.Random, request: pb.ModelInferRequest) -> bytes:
    """A few bytes changed, cut, doubled or put in, or a field of the message made odd."""
    kind = rng.randrange(3)
    if kind == 0:
        changed = pb.ModelInferRequest.FromString(request.SerializeToString())
        tensor = rng.choice(changed.inputs)
        choice = rng.randrange(5)
        if choice == 0:
            tensor.shape[:] = [rng.choice([-1, 0, 1, 2**62, 7]) for _ in range(rng.randrange(6))]
        elif choice == 1:
            tensor.datatype = rng.choice(["", "BYTES", "BOOL", "FP16", "INT64", "x" * 1000])
        elif choice == 2:
            tensor.name = rng.choice(["", "stream", "text_input", "beam_width", "\0"])
        elif choice == 3:
            del changed.inputs[rng.randrange(len(changed.inputs))]
        else:
            tensor.contents.bytes_contents.append(rng.randbytes(5))
        return changed.SerializeToString()
    data = bytearray(request.SerializeToString())
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data))
        if kind == 1:
            data[place] = rng.randrange(256)
        else:
            data[place : place + rng.randrange(6)] = rng.randbytes(rng.randrange(6))
    return bytes(data)


def test_damaged_requests_have_a_status_of_theirs() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            beside = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel).ModelStreamInfer()
            await beside.write(streamed("!step a b", id="beside"))
            await tier.until(lambda: tier.num_running == 1)
            call = live.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            rng = random.Random(8)
            requests = whole_requests()
            codes: dict[Any, int] = {}
            for _ in range(NUM_REQUESTS):
                data = damaged(rng, rng.choice(requests))
                answer = call(data, timeout=10)
                code = await answer.code()
                assert code in ALLOWED, (code, await answer.details(), data)
                codes[code] = codes.get(code, 0) + 1
            assert codes[grpc.StatusCode.INVALID_ARGUMENT] > NUM_REQUESTS / 3
            assert live.server.backends.num_open == 1
            tier.step()
            await asyncio.sleep(0.01)
            tier.step()
            answers = (await ended(beside, 1))["beside"]
            assert "".join(outputs_of(a.infer_response)["text_output"][0] for a in answers) == "a b"
            beside.cancel()
            await live.until_idle()

    asyncio.run(main())


def test_damaged_requests_on_one_stream_end_one_by_one() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            call = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel).ModelStreamInfer()
            rng = random.Random(9)
            requests = whole_requests()
            written = 0
            while written < NUM_REQUESTS:
                try:
                    request = pb.ModelInferRequest.FromString(damaged(rng, rng.choice(requests)))
                except Exception:  # what cannot be parsed ends the stream, which another test looks at
                    continue
                request.id = str(written)
                await call.write(request)
                written += 1
            answers = await ended(call, NUM_REQUESTS)
            assert len(answers) == NUM_REQUESTS
            assert sum(responses[-1].error_message != "" for responses in answers.values()) > NUM_REQUESTS / 3
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF and await call.code() is grpc.StatusCode.OK
            await live.until_idle()

    asyncio.run(main())
