"""What a token session does about a peer that does not keep to the protocol, or does not read."""

import asyncio

import grpc
import pytest

from model_svc import sessions
from tests.fakes.live_model_tier import RawSession, live_model_tier, token_request
from tokenwire.errors import Overloaded
from tokenwire.status import from_wire
from tokenwire.v1 import common_pb2, model_pb2


@pytest.mark.parametrize(
    ("version", "code"), [(2, grpc.StatusCode.FAILED_PRECONDITION), (None, grpc.StatusCode.INVALID_ARGUMENT)]
)
def test_another_protocol_version_or_no_hello_ends_the_call(version: int | None, code: grpc.StatusCode) -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = RawSession(live.stub.Session())
            if version:
                await session.send(hello=common_pb2.Hello(protocol_version=version))
            else:
                await session.submit({1: token_request([1])})
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await session.call.read()
            assert caught.value.code() is code

    asyncio.run(main())


def test_a_handle_out_of_order_ends_the_session_and_frees_everything() -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            session = await RawSession.open(live.stub)
            await session.submit({5: token_request([1], max_tokens=8000)})
            await session.submit({5: token_request([1])})
            with pytest.raises(grpc.aio.AioRpcError, match="handle 5 is not greater than 5") as caught:
                await session.read_until_finished(99)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            await live.until_idle()

    asyncio.run(main())


def hello_of(name: str, vocabulary: str = "") -> common_pb2.Hello:
    card = common_pb2.ModelCard(name=name, fingerprint=common_pb2.Fingerprint(vocabulary=vocabulary))
    return common_pb2.Hello(protocol_version=1, models=[card])


SUBMIT = model_pb2.TokenSubmit(handle=1, request=token_request([1]))


MINE = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("first", "then", "code"),
    [
        ({"hello": common_pb2.Hello(protocol_version=1), "submits": [SUBMIT]}, [], "INVALID_ARGUMENT"),
        ({"hello": hello_of("")}, [{"hello": common_pb2.Hello(protocol_version=1)}], "INVALID_ARGUMENT"),
        ({"hello": hello_of("")}, [{"drain": common_pb2.Drain()}, {"submits": [SUBMIT]}], "INVALID_ARGUMENT"),
        ({"hello": hello_of("other")}, [], "NOT_FOUND"),
        ({"hello": hello_of("smollm2-135m-instruct", "sha256:" + "b" * 64)}, [], "FAILED_PRECONDITION"),
    ],
)
def test_a_frame_out_of_place_or_a_hello_that_does_not_suit_ends_the_call(
    first: dict[str, object], then: list[dict[str, object]], code: str
) -> None:
    async def main() -> None:
        async with live_model_tier() as live:
            live.tier.state._fingerprint.vocabulary = MINE
            session = RawSession(live.stub.Session())
            await session.send(**first)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                if then:
                    await session.read()
                    running = token_request([7], max_tokens=8000)
                    await session.send(submits=[model_pb2.TokenSubmit(handle=1, request=running)])
                    for frame in then:
                        await session.send(**frame)
                while await session.read():
                    pass
            assert caught.value.code().name == code
            await live.until_idle()

    asyncio.run(main())


def test_a_peer_that_submits_and_never_reads_is_refused_then_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_UNSENT", 500)

    async def main() -> None:
        async with live_model_tier(mock_step_ms=0.0) as live:
            await RawSession.open(live.stub)
            (server,) = live.tier.servicer._sessions
            monkeypatch.setattr(server, "next_frame", asyncio.Event().wait)  # the transport takes one frame at most
            submits = [
                model_pb2.TokenSubmit(handle=h, request=token_request([h], max_tokens=20)) for h in range(1, 400)
            ]
            with pytest.raises(Overloaded, match="does not read"):
                for submit in submits:
                    server.on_frame(model_pb2.ModelServiceSessionRequest(submits=[submit]))
                    await asyncio.sleep(0.002)
            reasons = {from_wire(f.error).reason for f in server._frames.take().finishes if f.HasField("error")}
            assert reasons == {"SLOW_READER"}, "refused before it was cut off"

    asyncio.run(main())
