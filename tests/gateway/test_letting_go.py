"""What a call held is gone with it, without waiting for a look for garbage: prompts may be large.

Over HTTP and gRPC, of clients that are answered, that are refused, and that leave. Clients write bytes here, so that
whatever message there is afterwards is the gateway's.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from gateway.http.calls import HttpCall
from gateway.http.openai_completions import CompletionBody
from gateway.http.openai_embeddings import EmbeddingBody
from gateway.kserve.infer_stream import InferStream
from gateway.kserve.request import InferRequest
from gateway.sessions import TextServerSession
from gateway.submission import Submission
from tests.fakes.held import collecting_nothing, held
from tests.fakes.inference import infer_request, streamed
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake, generate_request
from tests.fakes.tokenizer_tier import MODEL, FakeTokenizerTier
from tokenwire.kserve import inference_pb2 as pb
from tokenwire.v1 import common_pb2, gateway_pb2, tokenizer_pb2

KINDS = (
    HttpCall, CompletionBody, EmbeddingBody, InferStream, InferRequest, TextServerSession, Submission,
    gateway_pb2.GenerateRequest, gateway_pb2.ChatRequest, tokenizer_pb2.TextRequest, tokenizer_pb2.EmbedRequest,
    tokenizer_pb2.TokenizeRequest, tokenizer_pb2.Submit, pb.ModelInferRequest,
)  # fmt: skip
BIG = "a " * 3000
GENERATION, INFERENCE = "/tokenwire.v1.GenerationService/", "/inference.GRPCInferenceService/"
REFUSED = common_pb2.RequestContext(request_id="\n")

Way = Callable[[FakeTokenizerTier, LiveGateway], Awaitable[None]]
WAYS: dict[str, Way] = {}


def way(call: Way) -> Way:
    WAYS[call.__name__] = call
    return call


async def posted(live: LiveGateway, path: str, status: int, **body: Any) -> None:
    response = await live.http.post(path, json={"model": MODEL, **body})
    assert response.status_code == status, response.text


async def left(tier: FakeTokenizerTier, live: LiveGateway, path: str, **body: Any) -> None:
    """Ask over HTTP, and leave while it is being answered."""
    content = json.dumps(body).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", live.server.http.port)
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % (path.encode(), len(content)) + content)
    await tier.until(lambda: tier.num_running or tier.num_embedding)
    writer.close()
    await tier.until(lambda: not tier.num_running and not tier.num_embedding)


async def called(live: LiveGateway, method: str, request: Any, *, refused: bool = False) -> None:
    """One message up, whatever comes down, as bytes."""
    unary = method.rpartition("/")[2] in ("Embed", "Tokenize", "ModelInfer")
    kind = live.channel.unary_unary if unary else live.channel.unary_stream
    call = kind(method)(request.SerializeToString())
    try:
        if unary:
            await call
        else:
            async for _ in call:
                pass
    except grpc.aio.AioRpcError as error:
        assert refused, error
    else:
        assert not refused


async def cancelled(tier: FakeTokenizerTier, live: LiveGateway, method: str, *requests: Any, unary: bool) -> None:
    """Messages up, and the call is taken back while they are being answered."""
    if unary:
        call = live.channel.unary_stream(method)(requests[0].SerializeToString())
    else:
        call = live.channel.stream_stream(method)()
        for request in requests:
            await call.write(request.SerializeToString())
    await tier.until(lambda: tier.num_running)
    call.cancel()
    await tier.until(lambda: not tier.num_running)


async def streamed_to_its_end(live: LiveGateway, method: str, *requests: Any, num_answers: int, **call: Any) -> None:
    """Messages up, so many down, and the end, whatever that is."""
    stream = live.channel.stream_stream(method)(**call)
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        for request in requests:
            await stream.write(request.SerializeToString())
        for _ in range(num_answers):
            await stream.read()
        await stream.done_writing()
        while await stream.read() is not grpc.aio.EOF:
            pass


def submits(text: str, **fields: Any) -> list[Any]:
    request = tokenizer_pb2.TextRequest(text=text, **fields)
    return [
        tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)),
        tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=1, request=request)]),
    ]


@way
async def answered_over_http(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    for stream in (False, True):
        await posted(live, "/v1/completions", 200, prompt="a b", max_tokens=2, stream=stream)


@way
async def refused_over_http(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    for stream in (False, True):
        await posted(live, "/v1/completions", 400, prompt=f"!bad {BIG}", stream=stream)


@way
async def broken_over_http(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await posted(live, "/v1/completions", 200, prompt=f"!break {BIG}", stream=True)


@way
async def one_of_two_refused_over_http(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await posted(live, "/generate", 200, inputs=[f"!bad {BIG}", "a"])


@way
async def embedding_refused_over_http(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await posted(live, "/v1/embeddings", 400, input=["!bad", BIG])


@way
async def streaming_client_leaves(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await left(tier, live, "/v1/completions", prompt=f"!hold {BIG}", stream=True)


@way
async def waiting_client_leaves(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await left(tier, live, "/v1/completions", prompt=f"!hang {BIG}", stream=False)


@way
async def client_of_many_prompts_leaves(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await left(tier, live, "/generate", inputs=[f"!hold {BIG}", f"!hang {BIG}"], stream=True)


@way
async def embedding_client_leaves(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await left(tier, live, "/v1/embeddings", input=["!hang", BIG])


@way
async def answered_over_grpc(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await called(live, f"{GENERATION}Generate", generate_request(BIG[:20]))


@way
async def refused_over_grpc(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await called(live, f"{GENERATION}Generate", generate_request(BIG, context=REFUSED), refused=True)
    await called(live, f"{GENERATION}Generate", generate_request(f"!bad {BIG}"), refused=True)
    messages = [tokenizer_pb2.ChatMessage(role="user", content=f"!bad {BIG}")]
    chat = gateway_pb2.ChatRequest(conversation=tokenizer_pb2.Conversation(messages=messages))
    await called(live, f"{GENERATION}Chat", chat, refused=True)
    await called(live, f"{GENERATION}Embed", tokenizer_pb2.EmbedRequest(texts=["!bad", BIG]), refused=True)
    await called(live, f"{GENERATION}Tokenize", tokenizer_pb2.TokenizeRequest(model=BIG), refused=True)


@way
async def one_of_two_refused_over_grpc(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await called(live, f"{GENERATION}Generate", generate_request(f"!bad {BIG}", "a"))


@way
async def grpc_client_leaves(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await cancelled(tier, live, f"{GENERATION}Generate", generate_request(f"!hold {BIG}"), unary=True)


@way
async def refused_on_a_session(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    for requests in (submits(BIG, context=REFUSED), submits(f"!bad {BIG}")):
        await streamed_to_its_end(live, f"{GENERATION}Session", *requests, num_answers=2)


@way
async def session_client_leaves(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await cancelled(tier, live, f"{GENERATION}Session", *submits(f"!hold {BIG}"), unary=False)


@way
async def inference_refused(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    await called(live, f"{INFERENCE}ModelInfer", infer_request(BIG, parameters={"odd": 1}), refused=True)
    await called(live, f"{INFERENCE}ModelInfer", infer_request(f"!bad {BIG}"), refused=True)


@way
async def streamed_inference_refused(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    method, as_status = f"{INFERENCE}ModelStreamInfer", (("triton_grpc_error", "true"),)
    for request in (streamed(f"!bad {BIG}"), streamed(BIG, parameters={"odd": 1})):
        await streamed_to_its_end(live, method, request, num_answers=1)
        await streamed_to_its_end(live, method, request, num_answers=0, metadata=as_status)


@way
async def inference_client_leaves(tier: FakeTokenizerTier, live: LiveGateway) -> None:
    requests = [streamed(f"!hold {BIG}"), streamed(f"!hang {BIG}")]
    await cancelled(tier, live, f"{INFERENCE}ModelStreamInfer", *requests, unary=False)


async def check(*ways: Way) -> None:
    async with gateway_over_fake() as (tier, live):
        before = held(KINDS)
        async with asyncio.timeout(20 * len(ways)):
            for call in ways * 3:
                await call(tier, live)
        await live.until_idle()
        for _ in range(10):
            await asyncio.sleep(0.01)
        tier.requests.clear()
        tier.embeds.clear()
        assert not held(KINDS) - before


@pytest.mark.parametrize("name", WAYS)
def test_what_was_asked_is_let_go(name: str) -> None:
    with collecting_nothing():
        asyncio.run(check(WAYS[name]))


def test_nothing_that_lasts_as_long_as_the_process_keeps_any_of_it() -> None:
    with collecting_nothing(whole_process=True):
        asyncio.run(check(*WAYS.values()))


def test_what_was_refused_on_a_session_is_let_go_before_anybody_reads_of_it() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            session = TextServerSession(live.server.generation, 1, lambda _: None)
            before = held(KINDS)
            frame = submits(BIG, context=REFUSED)[1].SerializeToString()
            session.on_frame(tokenizer_pb2.SessionRequest.FromString(frame))
            assert session.outbox.num_undelivered == 1
            assert not held(KINDS) - before
            session.close()

    with collecting_nothing():
        asyncio.run(main())
