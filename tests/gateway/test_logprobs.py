"""Log-probabilities through the gateway: one for each token, in whatever portions a client reads."""

import asyncio

import grpc
from prometheus_client import CollectorRegistry

from gateway.metrics import GatewayMetrics, RequestRecord
from gateway.streams import Event, TextStream
from tests.fakes.live_gateway import gateway_over_fake, generate_request
from tests.fakes.logprobs import logprob_of, logprobs_of
from tokenwire.logprobs import MAX_ENTRIES, SequenceLogprobs
from tokenwire.requests import FinishReason, Terminal, TokenLogprob
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import gateway_pb2, tokenizer_pb2
from tokenwire.wire import logprob_from_wire

OUTPUT = pb.OutputOptions(logprobs=2, prompt_logprobs=1)
WORDS = [(0, "one", 0), (1, " two", 3), (2, " three", 7)]
EXPECTED = [logprob_of(i, 2, text=text, text_offset=offset) for i, text, offset in WORDS]
PROMPT = logprobs_of(range(1, 4), 1)


def read(messages) -> tuple[list[TokenLogprob], list[TokenLogprob]]:
    """Those of the output and of the prompt, in order. Each message has as many as it has tokens."""
    tokens: list[TokenLogprob] = []
    prompt: list[TokenLogprob] = []
    for message in messages:
        assert not (tokens and message.prompt_logprobs), "the prompt's come first"
        tokens += map(logprob_from_wire, message.logprobs)
        prompt += map(logprob_from_wire, message.prompt_logprobs)
    return tokens, prompt


def test_generate_and_chat_relay_them() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            options = pb.GenerationOptions(output=OUTPUT, num_choices=2)
            generated = await live.generate("one two three", options=options)
            request = gateway_pb2.ChatRequest(options=options)
            request.conversation.messages.add(role="user", content="one two three")
            chatted = [response async for response in live.stub.Chat(request)]
            for responses in (generated, chatted):
                assert all(len(r.delta.logprobs) == r.delta.num_tokens for r in responses)
                for choice in range(2):
                    assert read(r.delta for r in responses if r.choice == choice) == (EXPECTED, PROMPT)
            plain = await live.generate("one two three")
            assert not any(r.delta.logprobs or r.delta.prompt_logprobs for r in plain)

    asyncio.run(main())


def test_a_session_relays_them_and_with_credits_they_come_with_their_text() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            call = live.stub.Session()
            await call.write(tokenizer_pb2.SessionRequest(hello=pb.Hello(protocol_version=1)))
            await call.read()
            request = tokenizer_pb2.TextRequest(text="one two three", options=pb.GenerationOptions(output=OUTPUT))
            await call.write(
                tokenizer_pb2.SessionRequest(
                    submits=[tokenizer_pb2.Submit(handle=1, request=request, initial_credit=1)],
                )
            )
            frames: list[tokenizer_pb2.SessionResponse] = []
            while not sum(sum(frame.num_tokens) for frame in frames):
                frames.append(await call.read())
            await call.write(tokenizer_pb2.SessionRequest(credits=[pb.Credit(handle=1, tokens=5)]))
            while not frames[-1].finishes:
                frames.append(await call.read())
                assert frames[-1] is not grpc.aio.EOF
            assert read(extras for frame in frames for extras in frame.extras) == (EXPECTED, PROMPT)
            assert "".join(text for frame in frames for text in frame.texts) == "one two three"
            call.cancel()

    asyncio.run(main())


def test_a_client_that_reads_late_gets_all_of_them() -> None:
    """More than a message of gRPC's default limit holds, which this client keeps."""

    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            num_words = 8_000  # with their alternatives some 10 MB
            words = " ".join(f"{i:040}" for i in range(num_words))
            options = pb.GenerationOptions(output=pb.OutputOptions(logprobs=20, return_token_ids=True))
            call = live.stub.Generate(generate_request(words, options=options))
            await call.initial_metadata()
            await tier.until(lambda: tier.requests and tier.num_running == 0)
            responses = [response async for response in call]
            tokens, _ = read(r.delta for r in responses)
            assert [t.token_id for t in tokens] == list(range(num_words)) and all(len(t.top) == 20 for t in tokens)
            assert all(len(r.delta.logprobs) == r.delta.num_tokens == len(r.delta.token_ids) for r in responses)
            assert "".join(r.delta.text for r in responses) == words and responses[-1].HasField("finish")

    asyncio.run(main())


def test_what_waits_is_merged_up_to_what_a_message_holds() -> None:
    async def main() -> None:
        stream = TextStream(RequestRecord(GatewayMetrics(CollectorRegistry()), "test"), 1, 1)
        (output,) = stream.outputs[0]
        prompt = logprobs_of(range(900), 20)
        output.on_text("", 0, (), SequenceLogprobs(prompt=list(prompt[:450])))
        output.on_text("", 0, (), SequenceLogprobs(prompt=list(prompt[450:])))
        tokens = logprobs_of(range(1000), 20)
        for logprob in tokens:
            output.on_text("x", 1, (logprob.token_id,), SequenceLogprobs([logprob]))
        output.on_text("held back", 0, ())
        output.on_finish(Terminal(FinishReason.LENGTH))
        events: list[Event] = []
        while new := await stream.next_events():
            events += new
        assert all(event.logprobs is not None and event.logprobs.num_entries <= MAX_ENTRIES for event in events)
        assert [t for event in events for t in event.logprobs.prompt] == prompt
        assert [t for event in events for t in event.logprobs.tokens] == tokens
        assert all(len(event.logprobs.tokens) == event.num_tokens == len(event.token_ids) for event in events)
        assert [event.terminal is not None for event in events] == [False] * (len(events) - 1) + [True]
        assert "".join(event.text for event in events) == "x" * 1000 + "held back"
        stream.record.close()

    asyncio.run(main())
