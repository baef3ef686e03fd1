"""Whose `traceparent` decides that a trace is kept, by every way in, with the gateway's own traces on and off."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.fakes.identities import Callers
from tests.fakes.inference import infer_request, streamed
from tests.fakes.live_gateway import LiveGateway, generate_request, live_gateway
from tests.fakes.spans import keeping_tracer
from tests.fakes.tokenizer_tier import fake_tokenizer_tier
from tests.fakes.web_caller import WebCaller
from tokenwire.kserve import inference_pb2_grpc
from tokenwire.v1 import common_pb2, tokenizer_pb2

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
KEPT, DROPPED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
Ask = Callable[[LiveGateway, str, dict[str, str]], Awaitable[None]]


async def over(call: Any) -> None:
    async for _ in call:
        pass


async def by_metadata(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    metadata = (("traceparent", traceparent), *headers.items())
    await over(live.stub.Generate(generate_request("one"), metadata=metadata))


async def by_message(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    context = common_pb2.RequestContext(traceparent=traceparent)
    await over(live.stub.Generate(generate_request("one", context=context), metadata=tuple(headers.items())))


async def by_session(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    call = live.stub.Session(metadata=tuple(headers.items()))
    await call.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
    request = tokenizer_pb2.TextRequest(text="one", context=common_pb2.RequestContext(traceparent=traceparent))
    await call.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=1, request=request)]))
    await call.done_writing()
    await over(call)


async def by_header(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    body = {"prompt": "one"}
    answer = await live.http.post("/v1/completions", json=body, headers={**headers, "traceparent": traceparent})
    assert answer.status_code == 200


async def by_connect(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    asked = generate_request("one", context=common_pb2.RequestContext(traceparent=traceparent))
    (await WebCaller(live.http, "connect json").call("Generate", asked, headers)).or_raise()


async def by_connect_header(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    web = WebCaller(live.http, "grpc-web")
    (await web.call("Generate", generate_request("one"), {**headers, "traceparent": traceparent})).or_raise()


async def by_infer(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)
    await stub.ModelInfer(infer_request("one"), metadata=(("traceparent", traceparent), *headers.items()))


async def by_infer_stream(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(live.channel)
    metadata = (("traceparent", traceparent), *headers.items())
    await over(stub.ModelStreamInfer(iter([streamed("one")]), metadata=metadata))


WAYS: list[Ask] = [
    by_metadata, by_message, by_session, by_header, by_connect, by_connect_header, by_infer, by_infer_stream,
]  # fmt: skip


async def sent_down(
    ask: Ask, traceparent: str, *, ratio: float | None, callers: Callers | None, **settings: Any
) -> str:
    """What the tier below is told. `ratio`: None: the gateway traces nothing. `callers`: alice asks."""
    known = {} if callers is None else {"identity_file": str(callers.path)}
    async with fake_tokenizer_tier() as tier, live_gateway(tier, **known, **settings) as live:
        spans = None
        if ratio is not None:
            live.server.generation._tracer, spans = keeping_tracer(ratio)
        await ask(live, traceparent, {} if callers is None else callers.header("alice"))
        await live.until_idle()
        found: str = tier.requests[0].context.traceparent
        if spans is not None:
            await live.until(lambda: bool(spans.requests) == found.endswith("-01"))
        return found


@pytest.fixture
def callers(tmp_path: Any) -> Callers:
    return Callers.write(tmp_path / "identities.json")


@pytest.mark.parametrize("ask", WAYS)
def test_who_is_not_known_forces_no_trace_and_hides_from_none(ask: Ask) -> None:
    forced = asyncio.run(sent_down(ask, KEPT, ratio=0.0, callers=None))
    assert forced.startswith(f"00-{TRACE}-") and forced.endswith("-00"), "its trace goes on, not kept"
    hidden = asyncio.run(sent_down(ask, DROPPED, ratio=1.0, callers=None))
    assert hidden.startswith(f"00-{TRACE}-") and hidden.endswith("-01")
    assert asyncio.run(sent_down(ask, KEPT, ratio=None, callers=None)) == "", (
        "nor below, where the gateway has no traces"
    )


@pytest.mark.parametrize("ask", WAYS)
def test_who_is_known_decides(ask: Ask, callers: Callers) -> None:
    assert asyncio.run(sent_down(ask, KEPT, ratio=0.0, callers=callers)).endswith("-01")
    assert asyncio.run(sent_down(ask, KEPT, ratio=None, callers=callers)) == KEPT


def test_all_and_none(callers: Callers) -> None:
    for ratio, found in ((0.0, "-01"), (None, KEPT)):
        assert asyncio.run(sent_down(by_header, KEPT, ratio=ratio, callers=None, trace_callers="all")).endswith(found)
    assert asyncio.run(sent_down(by_header, DROPPED, ratio=1.0, callers=None, trace_callers="all")).endswith("-00")
    assert asyncio.run(sent_down(by_header, KEPT, ratio=0.0, callers=callers, trace_callers="none")).endswith("-00")
    assert asyncio.run(sent_down(by_header, KEPT, ratio=None, callers=callers, trace_callers="none")) == ""


async def by_two_headers(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    twice = [("traceparent", traceparent), ("traceparent", traceparent.replace(SPAN, "1" * 16)), *headers.items()]
    assert (await live.http.post("/v1/completions", json={"prompt": "one"}, headers=twice)).status_code == 200


async def by_two_web_headers(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    twice = [("traceparent", traceparent), ("traceparent", traceparent.replace(SPAN, "1" * 16)), *headers.items()]
    (await WebCaller(live.http, "grpc-web").call("Generate", generate_request("one"), twice)).or_raise()


@pytest.mark.parametrize("ask", [by_two_headers, by_two_web_headers])
def test_of_two_none_counts(ask: Ask) -> None:
    """https://www.w3.org/TR/trace-context/: who gets several restarts the trace. gRPC itself shows the last alone."""
    found = asyncio.run(sent_down(ask, KEPT, ratio=1.0, callers=None, trace_callers="all"))
    assert TRACE not in found and found.endswith("-01")


async def by_bytes(live: LiveGateway, traceparent: str, headers: dict[str, str]) -> None:
    body = '{"prompt": "one"}'
    head = (
        f"host: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\ntraceparent:{traceparent}"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", live.server.http.port)
    with contextlib.closing(writer):
        writer.write(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n{body}".encode())
        answer = await reader.readline()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200"), answer


def test_blanks_around_it_are_no_part_of_it() -> None:
    found = asyncio.run(sent_down(by_bytes, f"\t {KEPT} \t ", ratio=None, callers=None, trace_callers="all"))
    assert found == KEPT
