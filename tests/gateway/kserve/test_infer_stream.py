import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.fakes.inference import ended, flag, infer_request, is_final, outputs_of, streamed
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake
from tests.fakes.tokenizer_tier import FakeTokenizerTier
from tokenwire.errors import InvalidRequest, Unavailable
from tokenwire.kserve import inference_pb2_grpc
from tokenwire.requests import CancelReason
from tokenwire.status import from_rpc_error

Test = Callable[[FakeTokenizerTier, LiveGateway, Any], Awaitable[None]]


def run(test: Test, **settings: Any) -> None:
    """The test gets the tier, the gateway, and one open stream."""

    async def main() -> None:
        async with gateway_over_fake(**settings) as (tier, live):
            call = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel).ModelStreamInfer()
            await test(tier, live, call)
            call.cancel()
            await live.until_idle()

    asyncio.run(main())


def text_of(responses: list[Any]) -> str:
    return "".join(outputs_of(r.infer_response).get("text_output", [""])[0] for r in responses)


def test_pieces_come_one_by_one_and_the_last_says_so() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        await call.write(streamed("!step one two three", id="1"))
        await tier.until(lambda: tier.num_running == 1)
        pieces = []
        for _ in range(3):
            tier.step()
            pieces.append((await call.read()).infer_response)
        if not is_final(pieces[-1]):
            pieces.append((await call.read()).infer_response)
        found = [outputs_of(piece) for piece in pieces]
        assert "".join(f["text_output"][0] for f in found) == "one two three" and len(pieces) >= 3
        assert [is_final(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert [f["finish_reason"][0] for f in found] == ["None"] * (len(pieces) - 1) + ["stop"]
        assert sum(f["num_output_tokens"][0] for f in found) == 3
        assert found[-1]["num_input_tokens"] == [4] and "num_input_tokens" not in found[0]
        assert {piece.id for piece in pieces} == {"1"}
        await live.until(lambda: live.count("grpc.model_stream_infer", "ok") == 1)

    run(test)


def test_a_request_that_does_not_stream_has_one_answer() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        await call.write(infer_request("one two", id="1"))
        answers = (await ended(call, 1))["1"]
        assert len(answers) == 1 and outputs_of(answers[0].infer_response)["text_output"] == ["one twoone two"]

    run(test)


@pytest.mark.parametrize("stream", [True, False])
def test_an_empty_last_answer_when_it_is_asked_for(stream: bool) -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        parameters = {"triton_enable_empty_final_response": True}
        await call.write((streamed if stream else infer_request)("one two", id="1", parameters=parameters))
        answers = (await ended(call, 1))["1"]
        assert not answers[-1].infer_response.outputs and answers[-1].infer_response.model_name
        assert text_of(answers).endswith("one two")
        assert outputs_of(answers[-2].infer_response)["finish_reason"] == ["stop"]

    run(test)


def test_requests_interleave_and_each_ends_once() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        await call.write(streamed("!step a b c", id="slow"))
        await tier.until(lambda: tier.num_running == 1)
        for number in range(50):
            await call.write(streamed(f"x{number} y", id=str(number)))
        answers = await ended(call, 50)
        assert "slow" not in answers
        for number in range(50):
            assert text_of(answers[str(number)]) == f"x{number} y"
        for _ in range(3):
            tier.step()
            await asyncio.sleep(0.01)
        assert text_of((await ended(call, 1))["slow"]) == "a b c"

    run(test)


def test_what_goes_wrong_with_one_disturbs_no_other() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        await call.write(streamed("!step a b", id="good"))
        bad = {
            "no text": (infer_request(id="no text"), "text_input: is required"),
            "odd": (streamed("a", id="odd", parameters={"odd": 1}), "odd: there is no such field"),
            "below": (streamed("!bad", id="below"), "max_tokens: 999 is not allowed"),
            "empty": (streamed("", id="empty"), "text_input: the prompt is empty"),
            "model": (streamed("a", id="model", model_name="other"), "model 'other' is not served here"),
            "version": (streamed("a", id="version", model_version="7"), "model_version '7' is not served here"),
            "late": (streamed("!break a b", id="late"), "the fake broke"),
        }
        for request, _ in bad.values():
            await call.write(request)
        answers = await ended(call, len(bad))
        for name, (_, said) in bad.items():
            errors = [answer.error_message for answer in answers[name]]
            assert errors[:-1] == [""] * (len(errors) - 1) and said in errors[-1]
            assert is_final(answers[name][-1].infer_response)
        assert text_of(answers["late"]) == "a b", "what came before the error"
        assert not any(answer.error_message for answer in answers.get("good", []))
        tier.step()
        await asyncio.sleep(0.01)
        tier.step()
        assert "b" in text_of((await ended(call, 1))["good"])
        await live.until(lambda: live.count("grpc.model_stream_infer", "invalid_argument") == 4)

    run(test)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [(streamed("a", parameters={"odd": 1}), InvalidRequest), (streamed("!down"), Unavailable)],
)
def test_an_error_ends_the_call_when_that_is_asked_for(wrong: Any, error: type[Exception]) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)
            call = stub.ModelStreamInfer(metadata=(("triton_grpc_error", "true"),))
            await call.write(streamed("!hang", id="1"))
            await tier.until(lambda: tier.num_running == 1)
            await call.write(wrong)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert isinstance(from_rpc_error(caught.value), error)
            await tier.until(lambda: tier.num_running == 0)
            await live.until_idle()

    asyncio.run(main())


def test_several_texts_on_a_stream_say_which_is_meant() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        await call.write(streamed("a b c", "d e", id="1"))
        texts = ["", ""]
        for answer in (await ended(call, 1))["1"]:
            found = outputs_of(answer.infer_response)
            texts[found["batch_index"][0]] += found["text_output"][0]
            assert found["sequence_index"] == [0]
        assert texts == ["a b c", "d e"]

    run(test)


def test_one_bad_text_ends_its_request() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        await call.write(streamed("!hang", "!bad", id="1"))
        answers = (await ended(call, 1))["1"]
        assert [answer.error_message != "" for answer in answers] == [True]
        await tier.until(lambda: tier.cancels == [CancelReason.CLIENT])

    run(test)


def test_half_close_ends_the_call_once_everything_is_answered() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        await call.write(streamed("!step a", id="1"))
        await call.done_writing()
        await tier.until(lambda: tier.num_running == 1)
        tier.step()
        answers = [answer async for answer in call]
        assert text_of(answers) == "a" and await call.code() is grpc.StatusCode.OK

    run(test)


def test_a_stream_without_requests_ends_well() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        await call.done_writing()
        assert [answer async for answer in call] == [] and await call.code() is grpc.StatusCode.OK

    run(test)


def test_cancelling_the_call_takes_every_request_back() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        for number in range(5):
            await call.write(streamed("!hang", id=str(number)))
        await tier.until(lambda: tier.num_running == 5)
        call.cancel()
        await tier.until(lambda: tier.cancels == [CancelReason.CLIENT] * 5 and tier.num_running == 0)

    run(test)


def test_the_calls_deadline_reaches_each_request(call_s: float) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            call = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel).ModelStreamInfer(timeout=call_s)
            tier.deaf = True
            await call.write(streamed("!hold a", id="1"))
            answers = (await ended(call, 1))["1"]
            assert text_of(answers[:-1]) == "a"
            assert "the time given ran out" in answers[-1].error_message
            assert 0 < tier.requests[0].context.timeout_ms <= 500 * call_s

    asyncio.run(main())


def test_no_more_is_read_than_may_run() -> None:
    """A client that sends without end is made to wait, and is answered in full."""

    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        for number in range(40):
            await call.write(streamed("!hang" if number < 4 else "a b", id=str(number)))
        await tier.until(lambda: tier.num_running == 4)
        await asyncio.sleep(0.05)
        assert len(tier.requests) == 4
        for job in list(tier.sessions[0].jobs.values()):
            job.task.cancel()
        answers = await ended(call, 40)
        assert all("cancelled" in answers[str(number)][-1].error_message for number in range(4))
        assert all(text_of(answers[str(number)]) == "a b" for number in range(4, 40))

    run(test, max_concurrent_requests=4)


def test_a_slow_reader_gets_everything_in_fewer_pieces() -> None:
    async def test(tier: FakeTokenizerTier, live: LiveGateway, call: Any) -> None:
        words = " ".join("w" * 900 for _ in range(2000))
        await call.write(streamed(words, id="1"))
        await live.until_idle()
        answers = (await ended(call, 1))["1"]
        assert text_of(answers) == words and len(answers) < 2000

    run(test)


def test_messages_that_cannot_be_read_end_the_call() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            call = live.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")()
            await call.write(streamed("!hang").SerializeToString())
            await tier.until(lambda: tier.num_running == 1)
            await call.write(b"\xff\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert isinstance(from_rpc_error(caught.value), InvalidRequest)
            await tier.until(lambda: tier.num_running == 0)

    asyncio.run(main())


def test_drain_ends_what_idles_and_waits_for_what_runs() -> None:
    async def main() -> None:
        async with gateway_over_fake(drain_timeout_s=10.0) as (tier, live):
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)
            idle, busy = stub.ModelStreamInfer(), stub.ModelStreamInfer()
            await idle.write(infer_request("a", id="1"))
            await ended(idle, 1)
            await busy.write(streamed("!step a b", id="2"))
            await tier.until(lambda: tier.num_running == 1)
            draining = asyncio.ensure_future(live.server.drain())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await idle.read()
            assert isinstance(from_rpc_error(caught.value), Unavailable)
            await busy.write(flag(infer_request("late", id="3"), "stream"))
            refused = (await ended(busy, 1))["3"]
            assert "shutting down" in refused[-1].error_message
            tier.step()
            await asyncio.sleep(0.01)
            tier.step()
            assert text_of((await ended(busy, 1))["2"]) == "a b"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await busy.read()
            assert isinstance(from_rpc_error(caught.value), Unavailable)
            await draining

    asyncio.run(main())
