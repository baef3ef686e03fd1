"""Every way into a gateway, called as somebody, for somebody, with one small request. Each raises what it is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fakes.identities import Callers, Issuer
from tests.fakes.inference import infer_request, streamed
from tests.fakes.live_gateway import LiveGateway, generate_request, live_gateway
from tests.fakes.tokenizer_tier import FakeTokenizerTier, fake_tokenizer_tier
from tests.fakes.web_caller import WebCaller
from tokenwire.errors import NotFound, Overloaded, PermissionDenied, Unauthenticated
from tokenwire.kserve import inference_pb2, inference_pb2_grpc
from tokenwire.requests import MAX_PRIORITY
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2, gateway_pb2, gateway_pb2_grpc, tokenizer_pb2
from tokenwire.wire import terminal_from_wire

Metadata = tuple[tuple[str, str], ...]
Call = Callable[..., Awaitable[None]]

CONTEXT = frozenset({"tenant", "priority", "model", "default"})
"""What a request may name; `default`: it is for a model also where it names none."""
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Entrance:
    """One method or path."""

    name: str
    call: Call
    """Takes the gateway, the headers, and what the request names. Raises the TokenwireError that it is told."""
    names: frozenset[str] = NONE
    """Which of CONTEXT a request there can name."""
    admin: bool = False
    """It is for administrators alone."""


ENTRANCES: list[Entrance] = []


def entrance(names: frozenset[str] = NONE, *, admin: bool = False) -> Callable[[Call], Call]:
    """Add a function to ENTRANCES, under its name."""

    def add(call: Call) -> Call:
        ENTRANCES.append(Entrance(call.__name__, call, names, admin))
        return call

    return add


@asynccontextmanager
async def asking(callers: Callers, issuer: Issuer, **more: Any) -> AsyncIterator[tuple[FakeTokenizerTier, LiveGateway]]:
    """A gateway that asks for keys and tokens."""
    settings = {"identity_file": str(callers.path), **issuer.settings(), **more}
    async with fake_tokenizer_tier() as tier, live_gateway(tier, **settings) as live:
        yield tier, live


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


async def _http(live: LiveGateway, method: str, path: str, headers: Metadata, body: Any = None) -> None:
    response = await live.http.request(method, path, json=body, headers=list(headers))
    if response.status_code != 200:
        _raise_error(response)


def _raise_error(response: httpx.Response) -> None:
    error = response.json()["error"]
    kinds = {401: Unauthenticated, 403: PermissionDenied, 404: NotFound, 429: Overloaded}
    assert error["type"] == kinds[response.status_code].openai_type
    assert ("www-authenticate" in response.headers) == (response.status_code == 401)
    if response.status_code == 401:
        assert response.headers["www-authenticate"].startswith('Bearer realm="tokenwire"')
    raise kinds[response.status_code](error["message"], reason=error["code"].upper())


@entrance(CONTEXT)
async def http_completions(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    await _http(live, "POST", "/v1/completions", headers, {"prompt": "a b", **names})


@entrance(CONTEXT)
async def http_completions_with_echo(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    await _http(live, "POST", "/v1/completions", headers, {"prompt": [1, 2], "echo": True, "max_tokens": 0, **names})


@entrance(CONTEXT)
async def http_streamed_chat(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    messages = [{"role": "user", "content": "a"}]
    await _http(live, "POST", "/v1/chat/completions", headers, {"messages": messages, "stream": True, **names})


@entrance(CONTEXT)
async def http_embeddings(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    await _http(live, "POST", "/v1/embeddings", headers, {"input": "a b", **names})


@entrance(CONTEXT)
async def http_generate(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    await _http(live, "POST", "/generate", headers, {"inputs": ["a"], **names})


@entrance(frozenset({"model"}))
async def http_models(live: LiveGateway, headers: Metadata, model: str = "") -> None:
    await _http(live, "GET", f"/v1/models/{model}" if model else "/v1/models", headers)


@entrance(admin=True)
async def http_metrics(live: LiveGateway, headers: Metadata) -> None:
    await _http(live, "GET", "/metrics", headers)


@entrance(admin=True)
async def http_live(live: LiveGateway, headers: Metadata) -> None:
    async with live.http.stream("GET", "/live", headers=list(headers)) as response:
        if response.status_code == 200:
            assert (await anext(response.aiter_lines())).startswith("data: {")
            return
        await response.aread()
    _raise_error(response)


async def _grpc(call: Any) -> None:
    """A call with one request, to its end."""
    try:
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            async for _ in call:
                pass
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


def _stub(live: LiveGateway) -> Any:
    return gateway_pb2_grpc.GenerationServiceStub(live.channel)


def _split(names: dict[str, Any]) -> tuple[str, common_pb2.RequestContext]:
    model = names.pop("model", "")
    return model, common_pb2.RequestContext(**names)


@entrance(CONTEXT)
async def grpc_generate(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    model, context = _split(names)
    await _grpc(_stub(live).Generate(generate_request("a b", model=model, context=context), metadata=headers))


@entrance(CONTEXT)
async def grpc_chat(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    model, context = _split(names)
    conversation = tokenizer_pb2.Conversation(messages=[tokenizer_pb2.ChatMessage(role="user", content="a")])
    request = gateway_pb2.ChatRequest(conversation=conversation, model=model, context=context)
    await _grpc(_stub(live).Chat(request, metadata=headers))


@entrance(CONTEXT)
async def grpc_embed(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    model, context = _split(names)
    request = tokenizer_pb2.EmbedRequest(texts=["a b"], model=model, context=context)
    await _grpc(_stub(live).Embed(request, metadata=headers))


@entrance(frozenset({"model", "default"}))
async def grpc_tokenize(live: LiveGateway, headers: Metadata, model: str = "") -> None:
    await _grpc(_stub(live).Tokenize(tokenizer_pb2.TokenizeRequest(texts=["a"], model=model), metadata=headers))


@entrance(frozenset({"model", "default"}))
async def grpc_get_tokenizer(live: LiveGateway, headers: Metadata, model: str = "") -> None:
    await _grpc(_stub(live).GetTokenizer(tokenizer_pb2.GetTokenizerRequest(model=model), metadata=headers))


@entrance()
async def grpc_list_models(live: LiveGateway, headers: Metadata) -> None:
    await _grpc(_stub(live).ListModels(tokenizer_pb2.ListModelsRequest(), metadata=headers))


@entrance(CONTEXT)
async def grpc_session(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    async def use(call: Any) -> None:
        await greet(call)
        await submitted(call, 1, **names)

    await _on_stream(lambda: _stub(live).Session(metadata=headers, timeout=10), use)


@entrance(CONTEXT)
async def connect_generate(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    model, context = _split(names)
    request = generate_request("a b", model=model, context=context)
    (await WebCaller(live.http, "connect json").call("Generate", request, headers)).or_raise()


@entrance(CONTEXT)
async def connect_embed(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    model, context = _split(names)
    request = tokenizer_pb2.EmbedRequest(texts=["a b"], model=model, context=context)
    (await WebCaller(live.http, "connect").call("Embed", request, headers)).or_raise()


@entrance(CONTEXT)
async def grpc_web_generate(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    model, context = _split(names)
    request = generate_request("a b", model=model, context=context)
    (await WebCaller(live.http, "grpc-web text").call("Generate", request, headers)).or_raise()


@entrance()
async def grpc_web_list_models(live: LiveGateway, headers: Metadata) -> None:
    (await WebCaller(live.http, "grpc-web").call("ListModels", tokenizer_pb2.ListModelsRequest(), headers)).or_raise()


def _infer_request(make: Any, names: dict[str, Any]) -> Any:
    parameters = {"tenant": names["tenant"]} if "tenant" in names else {}
    if "priority" in names:
        parameters["priority"] = MAX_PRIORITY + 1 - names["priority"]  # Triton's levels
    return make("a b", model_name=names.get("model", ""), parameters=parameters)


def _inference(live: LiveGateway) -> Any:
    return inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)


@entrance(CONTEXT)
async def kserve_infer(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    await _grpc(_inference(live).ModelInfer(_infer_request(infer_request, names), metadata=headers))


@entrance(CONTEXT)
async def kserve_stream(live: LiveGateway, headers: Metadata, **names: Any) -> None:
    async def use(call: Any) -> None:
        await call.write(_infer_request(streamed, names))
        if await call.read() is grpc.aio.EOF:
            raise await ended(call)

    metadata = (*headers, ("triton_grpc_error", "true"))
    await _on_stream(lambda: _inference(live).ModelStreamInfer(metadata=metadata, timeout=10), use)


@entrance(frozenset({"model"}))
async def kserve_model_metadata(live: LiveGateway, headers: Metadata, model: str = "") -> None:
    stub = _inference(live)
    if model:
        await _grpc(stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name=model), metadata=headers))
    else:
        await _grpc(stub.ServerMetadata(inference_pb2.ServerMetadataRequest(), metadata=headers))


@entrance()
async def grpc_reflection(live: LiveGateway, headers: Metadata) -> None:
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    stub = reflection_pb2_grpc.ServerReflectionStub(live.channel)
    await _grpc(stub.ServerReflectionInfo(iter(asked), metadata=headers))


@entrance(admin=True)
async def grpc_channelz(live: LiveGateway, headers: Metadata) -> None:
    stub = channelz_pb2_grpc.ChannelzStub(live.channel)
    await _grpc(stub.GetServers(channelz_pb2.GetServersRequest(), metadata=headers))


async def _on_stream(make: Callable[[], Any], use: Callable[[Any], Awaitable[None]]) -> None:
    """A call that ended while its first message was written gets INTERNAL from grpc itself: it is made again."""
    while True:
        call = make()
        try:
            await use(call)
            return
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.INTERNAL or error.details() != "Internal error from Core":
                raise from_rpc_error(error) from None
        except asyncio.InvalidStateError:
            raise from_rpc_error(await ended(call)) from None
        finally:
            call.cancel()


async def ended(call: Any) -> grpc.aio.AioRpcError:
    """How a call ended."""
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )


async def greet(call: Any) -> Any:
    """Begin a session; what the gateway says first."""
    await call.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
    first = await call.read()
    if first is grpc.aio.EOF:
        raise await ended(call)
    return first.hello


async def submitted(call: Any, handle: int, **names: Any) -> None:
    """One request on a session to its end. Raises its error."""
    model, context = _split(names)
    request = tokenizer_pb2.TextRequest(text="a b", model=model, context=context)
    await call.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=handle, request=request)]))
    while True:
        frame = await call.read()
        for finish in frame.finishes:
            if (error := terminal_from_wire(finish).error) is not None:
                raise error
            return
