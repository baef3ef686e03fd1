import asyncio

import grpc
import pytest

from tests.fakes.live_gateway import gateway_over_fake, generate_request, live_gateway
from tests.fakes.tokenizer_tier import MODEL, fake_tokenizer_tier
from tokenwire.errors import InvalidRequest, MessageTooLarge, NotFound, Overloaded, Unavailable
from tokenwire.requests import CancelReason
from tokenwire.status import from_rpc_error, from_wire
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import gateway_pb2, tokenizer_pb2


def text_of(responses, index: int = 0, choice: int = 0) -> str:
    return "".join(r.delta.text for r in responses if (r.choice, getattr(r, "index", 0)) == (choice, index))


def finishes(responses) -> dict[tuple[int, int], pb.Finish]:
    found = {}
    for response in responses:
        key = (response.index, response.choice)
        assert key not in found, "something follows a terminal event"
        if response.HasField("finish"):
            found[key] = response.finish
    return found


def test_one_prompt_streams_its_text_and_ends_once() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            responses = await live.generate("one two three", context=pb.RequestContext(request_id="mine", tenant="t"))
            assert text_of(responses) == "one two three"
            finish = finishes(responses)[(0, 0)]
            assert finish.reason == pb.FINISH_REASON_STOP_TOKEN and finish.usage.completion_tokens == 3
            assert finish.timings.gateway.total_us >= finish.timings.gateway.first_text_us > 0
            assert sum(r.delta.num_tokens for r in responses) == 3
            assert (tier.requests[0].context.request_id, tier.requests[0].context.tenant) == ("mine", "t")
            await live.until(lambda: live.count("grpc.generate", "ok") == 1)

    asyncio.run(main())


def test_options_go_down_untouched_and_token_ids_come_back() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            options = pb.GenerationOptions(
                sampling=pb.SamplingParams(temperature=0.0, seed=7),
                stop=pb.StopConditions(max_tokens=2),
                output=pb.OutputOptions(return_token_ids=True),
            )
            responses = await live.generate("one two three", options=options, truncate=True, model=MODEL)
            assert text_of(responses) == "one two"
            assert [token for r in responses for token in r.delta.token_ids] == [0, 1]
            assert finishes(responses)[(0, 0)].reason == pb.FINISH_REASON_LENGTH
            assert tier.requests[0].options == options and tier.requests[0].truncate

    asyncio.run(main())


def test_many_prompts_of_many_choices_are_merged_and_a_bad_one_sinks_no_other() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            options = pb.GenerationOptions(num_choices=2)
            responses = await live.generate("a b", "!bad", "c d e", "", options=options)
            ends = finishes(responses)
            assert set(ends) == {(index, choice) for index in range(4) for choice in range(2)}
            for choice in range(2):
                assert text_of(responses, 0, choice) == "a b" and text_of(responses, 2, choice) == "c d e"
                assert ends[(1, choice)].reason == ends[(3, choice)].reason == pb.FINISH_REASON_ERROR
                empty = from_wire(ends[(3, choice)].error)
                assert [v.field for v in empty.violations] == ["prompts[3].text"]
                assert empty.message.startswith("prompts[3].text: ")
                assert ends[(1, choice)].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert len({request.context.request_id for request in tier.requests}) == 4

    asyncio.run(main())


def test_chat_and_token_ids() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            conversation = tokenizer_pb2.Conversation(
                messages=[tokenizer_pb2.ChatMessage(role="user", content="hi you")]
            )
            responses = [r async for r in live.stub.Chat(gateway_pb2.ChatRequest(conversation=conversation))]
            assert text_of(responses) == "hi you" and responses[-1].finish.reason == pb.FINISH_REASON_STOP_TOKEN
            prompt = gateway_pb2.Prompt(token_ids=pb.TokenIds(ids=[5, 6]))
            responses = [r async for r in live.stub.Generate(gateway_pb2.GenerateRequest(prompts=[prompt]))]
            assert text_of(responses) == "t5 t6"

    asyncio.run(main())


def test_what_comes_with_an_error_is_sent_before_it() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            chat = gateway_pb2.ChatRequest()
            chat.conversation.messages.add(role="user", content="!break a b")
            for call in (live.stub.Generate(generate_request("!break a b")), live.stub.Chat(chat)):
                responses = []
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async for response in call:
                        responses.append(response)
                assert caught.value.code() is grpc.StatusCode.INTERNAL
                assert "".join(response.delta.text for response in responses) == "a b"
                assert not any(response.HasField("finish") for response in responses)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("request_message", "kind", "field"),
    [
        (gateway_pb2.GenerateRequest(), InvalidRequest, "prompts"),
        (gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt()] * 5), InvalidRequest, "prompts"),
        (gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt()]), InvalidRequest, "prompts[0]"),
        (generate_request(""), InvalidRequest, "prompts[0].text"),
        (generate_request("!bad"), InvalidRequest, "options.stop.max_tokens"),
        (generate_request("a", options=pb.GenerationOptions(num_choices=2**31)), InvalidRequest, "options.num_choices"),
        (
            generate_request("a", options=pb.GenerationOptions(sampling=pb.SamplingParams(temperature=float("nan")))),
            InvalidRequest,
            "options.sampling.temperature",
        ),
        (
            generate_request("a", options=pb.GenerationOptions(sampling=pb.SamplingParams(top_p=0))),
            InvalidRequest,
            "options.sampling.top_p",
        ),
        (generate_request("a", context=pb.RequestContext(request_id="x" * 129)), InvalidRequest, "context.request_id"),
        (generate_request("a", context=pb.RequestContext(priority=101)), InvalidRequest, "context.priority"),
        (generate_request("a", model="other"), NotFound, None),
        (generate_request("a", options=pb.GenerationOptions(adapter=" x")), InvalidRequest, "options.adapter"),
    ],
)
def test_bad_input_is_the_status_of_the_call_and_disturbs_nobody(request_message, kind, field) -> None:
    async def main() -> None:
        async with gateway_over_fake(max_prompts=4) as (tier, live):
            other = live.stub.Generate(generate_request("!step undisturbed words"))
            await tier.until(lambda: tier.num_running == 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in live.stub.Generate(request_message):
                    pass
            error = from_rpc_error(caught.value)
            assert type(error) is kind
            assert [v.field for v in error.violations] == ([field] if field else [])
            assert live.count("grpc.generate", error.code.lower()) == 1
            first = asyncio.ensure_future(other.read())
            while not first.done():
                tier.step()
                await asyncio.sleep(0.002)
            assert first.result().delta.text.startswith("undisturbed")
            other.cancel()
            await live.until_idle()

    asyncio.run(main())


def test_invalid_utf8_and_oversize_messages_are_refused() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_message_bytes=4096) as (_, live):
            call = live.channel.unary_stream("/tokenwire.v1.GenerationService/Generate")
            prompt = b"\x0a\x02\xff\xfe"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"\x1a" + bytes([len(prompt)]) + prompt).read()
            error = from_rpc_error(caught.value)
            assert type(error) is InvalidRequest and error.reason == "MALFORMED_MESSAGE"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.generate("x" * 5000)
            assert type(from_rpc_error(caught.value)) is MessageTooLarge
            assert text_of(await live.generate("still here")) == "still here"

    asyncio.run(main())


def test_a_request_id_comes_back_from_context_metadata_or_drawn() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):

            async def returned(call) -> str:
                async for _ in call:
                    pass
                return dict(await call.initial_metadata())["x-request-id"]

            request = generate_request("a", context=pb.RequestContext(request_id="mine"))
            assert await returned(live.stub.Generate(request)) == "mine"
            metadata = (("x-request-id", "from-metadata"),)
            assert await returned(live.stub.Generate(generate_request("a"), metadata=metadata)) == "from-metadata"
            drawn = await returned(live.stub.Generate(generate_request("a")))
            assert drawn.startswith("req-")
            assert [r.context.request_id for r in tier.requests] == ["mine", "from-metadata", drawn]

    asyncio.run(main())


def test_two_callers_with_one_request_id_do_not_meet_below() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            request = generate_request("!hang", context=pb.RequestContext(request_id="same"))
            calls = [live.stub.Generate(request) for _ in range(2)]
            for call in calls:
                asyncio.ensure_future(call.initial_metadata())
            await tier.until(lambda: tier.num_running == 2)
            assert sorted(r.context.request_id for r in tier.requests) == ["same", "same~2"]
            for call in calls:
                call.cancel()
            await live.until_idle()

    asyncio.run(main())


def test_a_client_that_cancels_takes_its_request_back_below() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            call = live.stub.Generate(generate_request("!hold a b", options=pb.GenerationOptions(num_choices=2)))
            assert (await call.read()).delta.text == "a"
            call.cancel()
            await tier.until(lambda: len(tier.cancels) == 2 and tier.num_running == 0)
            assert set(tier.cancels) == {CancelReason.CLIENT}
            await live.until_idle()
            await live.until(lambda: live.count("grpc.generate", "cancelled") == 1)

    asyncio.run(main())


def test_a_channel_that_breaks_takes_its_request_back_below() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            channel = grpc.aio.insecure_channel(live.grpc_target)
            call = channel.unary_stream(
                "/tokenwire.v1.GenerationService/Generate",
                request_serializer=gateway_pb2.GenerateRequest.SerializeToString,
                response_deserializer=gateway_pb2.GenerateResponse.FromString,
            )(generate_request("!hold a b"))
            assert (await call.read()).delta.text == "a"
            await channel.close()
            await tier.until(lambda: tier.cancels == [CancelReason.CLIENT] and tier.num_running == 0)
            await live.until_idle()

    asyncio.run(main())


@pytest.mark.parametrize("deaf", [False, True])
def test_time_that_runs_out_ends_with_deadline_even_when_the_tier_below_hangs(deaf: bool) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            tier.deaf = deaf
            responses = await live.generate("!hold a b", context=pb.RequestContext(timeout_ms=50))
            assert text_of(responses) == "a"
            finish = finishes(responses)[(0, 0)]
            assert finish.reason == pb.FINISH_REASON_DEADLINE and finish.usage.completion_tokens == 1
            assert 0 < tier.requests[0].context.timeout_ms <= 50
            assert tier.cancels == [] or tier.cancels == [CancelReason.DEADLINE]
            await live.until_idle()

    asyncio.run(main())


def test_the_terminal_reaches_a_client_before_its_own_timer_fires(call_s: float) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            responses = await live.generate("!hold a b", timeout=call_s)
            assert finishes(responses)[(0, 0)].reason == pb.FINISH_REASON_DEADLINE
            assert tier.requests[0].context.timeout_ms <= 500 * call_s

    asyncio.run(main())


def test_a_default_time_limit_holds_for_requests_that_bring_none() -> None:
    async def main() -> None:
        async with gateway_over_fake(default_timeout_s=0.05) as (_, live):
            responses = await live.generate("!hold a b")
            assert finishes(responses)[(0, 0)].reason == pb.FINISH_REASON_DEADLINE

    asyncio.run(main())


def test_more_than_the_limit_is_refused_with_a_time_to_come_back() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_concurrent_requests=2) as (tier, live):
            call = live.stub.Generate(generate_request("!hang", "!hang"))
            asyncio.ensure_future(call.initial_metadata())
            await tier.until(lambda: tier.num_running == 2)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.generate("one more")
            error = from_rpc_error(caught.value)
            assert type(error) is Overloaded and error.retry_after_s
            call.cancel()
            await live.until_idle()
            assert text_of(await live.generate("room again")) == "room again"

    asyncio.run(main())


def test_a_call_counts_with_all_its_choices_and_is_refused_whole() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_concurrent_requests=5) as (tier, live):
            pairs = pb.GenerationOptions(num_choices=2)
            call = live.stub.Generate(generate_request("!hang", options=pairs))
            asyncio.ensure_future(call.initial_metadata())
            await tier.until(lambda: len(tier.requests) == 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.generate("a", "b", options=pairs)
            error = from_rpc_error(caught.value)
            assert type(error) is Overloaded and error.retry_after_s == 1
            assert len(tier.requests) == 1, "nothing of a refused call goes down"
            call.cancel()
            await live.until_idle()
            assert text_of(await live.generate("a", "b", options=pairs), 1, 1) == "b"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await live.generate("a", "b", "c", options=pairs)
            error = from_rpc_error(caught.value)
            assert type(error) is InvalidRequest
            assert [v.field for v in error.violations] == ["options.num_choices"]
            assert "3 prompts times 2 choices are 6 outputs: at most 5" in error.message

    asyncio.run(main())


def test_what_is_said_of_special_tokens_and_truncation_goes_down() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            fields = {"split_special_tokens": True, "truncation": {"side": 2, "max_tokens": 9}}
            await live.generate("a", **fields)
            messages = [{"role": "user", "content": "a"}]
            chat = gateway_pb2.ChatRequest(conversation={"messages": messages}, **fields)
            assert [response async for response in live.stub.Chat(chat)]
            await live.generate("a")
            for request in tier.requests[:2]:
                assert request.split_special_tokens
                assert (request.truncation.side, request.truncation.max_tokens) == (2, 9)
            assert not tier.requests[2].HasField("truncation") and not tier.requests[2].split_special_tokens

    asyncio.run(main())


def test_without_a_tier_requests_are_refused_and_answered_once_it_is_up() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier:
            port = tier.port
            await tier.kill()
            async with live_gateway(tier, wait=False) as live:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await live.generate("a")
                error = from_rpc_error(caught.value)
                assert type(error) is Unavailable and error.reason == "TOKENIZER_TIER_DOWN"
                assert tier.target in error.message
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await live.stub.ListModels(tokenizer_pb2.ListModelsRequest())
                assert from_rpc_error(caught.value).reason == "TOKENIZER_TIER_DOWN"
                await tier.start(port=port)
                await live.until_ready()
                assert text_of(await live.generate("a b")) == "a b"

    asyncio.run(main())
