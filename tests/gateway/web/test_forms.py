"""What stands around a message: envelopes, timeouts, base64, the last envelope of each protocol."""

import asyncio
import base64
import json

import grpc
import pytest

from gateway.http.errors import RequestTimeout
from gateway.web.codecs import LARGE_BYTES, Binary, Json
from gateway.web.connect import HTTP_STATUSES, ConnectStream, ConnectUnary, stream_end, unary_failure
from gateway.web.envelopes import envelope, only_message
from gateway.web.grpc_web import GrpcWeb, trailers
from gateway.web.status import CallStatus, as_on_grpc
from tests.fakes.web_caller import connect_error, grpc_end, split
from tokenwire.errors import (
    DeadlineExceeded,
    FieldViolation,
    InvalidRequest,
    MessageTooLarge,
    Overloaded,
    TokenwireError,
    Unsupported,
)
from tokenwire.v1 import gateway_pb2

UNARY, STREAM = ConnectUnary(Binary(), b"application/proto"), ConnectStream(Binary(), b"application/connect+proto")
WEB, WEB_TEXT = GrpcWeb(Binary(), b"application/grpc-web+proto"), GrpcWeb(Binary(), b"", as_text=True)

ERRORS = [
    InvalidRequest("bad: ä\n%41 x", violations=[FieldViolation("prompts[0].text", "is bad")]),
    Overloaded("full", reason="QUEUE_FULL", retry_after_s=0.25),
    DeadlineExceeded("late"),
]


def test_a_message_and_its_envelope() -> None:
    assert envelope(0x80, b"abc") == b"\x80\x00\x00\x00\x03abc"
    for payload in (b"", b"x", b"y" * 70_000):
        assert only_message(envelope(0, payload)) == payload


@pytest.mark.parametrize("flags", range(256))
def test_flags_before_a_request(flags: int) -> None:
    if flags:
        with pytest.raises(Unsupported if flags & 1 else InvalidRequest):
            only_message(envelope(flags, b"x"))
    else:
        assert only_message(envelope(flags, b"x")) == b"x"


def test_bodies_that_are_cut_or_too_long() -> None:
    whole = envelope(0, b"hello")
    for cut in range(1, len(whole)):
        with pytest.raises(InvalidRequest, match="is cut") as caught:
            only_message(whole[:cut])
        assert caught.value.reason == "MALFORMED_FRAME"
    for body in (b"", whole + b"\x00", whole + whole):
        with pytest.raises(Unsupported, match="takes one message") as refused:
            only_message(body)
        assert refused.value.reason == "MESSAGE_COUNT"
    with pytest.raises(InvalidRequest):
        only_message(b"\x00\xff\xff\xff\xff")


def test_base64() -> None:
    assert WEB_TEXT.message_of(base64.b64encode(envelope(0, b"hello"))) == b"hello"
    for body in (b"*", b"AAAA=AAA", b"A", "ä".encode(), b"\xff"):
        with pytest.raises(InvalidRequest):
            WEB_TEXT.message_of(body)


def test_how_long_callers_wait() -> None:
    for form in (UNARY, STREAM):
        assert form.timeout_s({}) is None and form.timeout_s({"connect-timeout-ms": "1500"}) == 1.5
        assert form.timeout_s({"connect-timeout-ms": "0", "connect-protocol-version": "1"}) == 0
    found = [WEB.timeout_s({"grpc-timeout": f"2{unit}"}) for unit in "HMSmun"]
    assert found == pytest.approx([7200, 120, 2, 0.002, 2e-6, 2e-9]) and WEB.timeout_s({}) is None
    for bad in ("", "٣", "1 ", "12345678901", "1e3"):
        with pytest.raises(InvalidRequest):
            UNARY.timeout_s({"connect-timeout-ms": bad})
        with pytest.raises(InvalidRequest):
            WEB.timeout_s({"grpc-timeout": bad})


def test_compression_is_refused_by_name() -> None:
    for form, name in (
        (UNARY, "content-encoding"), (STREAM, "connect-content-encoding"), (WEB, "grpc-encoding"),
    ):  # fmt: skip
        with pytest.raises(Unsupported, match=name):
            form.timeout_s({name: "gzip"})
        assert form.timeout_s({name: "identity"}) is None


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_reads_back_as_itself_from_both(error: TokenwireError) -> None:
    status = CallStatus.of(error)
    http_status, headers, body = unary_failure(status)
    ((flags, end),), _ = split(stream_end(status))
    ((web_flags, web_end),), _ = split(trailers(status))
    code, from_web = grpc_end(web_end)
    assert (flags, web_flags, code) == (2, 0x80, error.code) and from_web is not None
    for found in (connect_error(json.loads(body)), connect_error(json.loads(end)["error"]), from_web):
        assert type(found) is type(error) and found.message == error.message and found.reason == error.reason
        assert (found.violations, found.retry_after_s) == (error.violations, error.retry_after_s)
    assert http_status == error.http_status
    assert (dict(headers).get(b"retry-after") is not None) == (error.retry_after_s is not None)


def test_an_end_that_is_well() -> None:
    assert split(stream_end(None))[0] == [(2, b"{}")]
    assert split(trailers(None))[0] == [(0x80, b"grpc-status: 0\r\n")]


def test_every_code_has_a_status_of_https() -> None:
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            http_status, _, body = unary_failure(CallStatus(code, "x"))
            assert http_status == HTTP_STATUSES.get(code, 500) >= 400
            assert json.loads(body)["code"] == ("canceled" if code.name == "CANCELLED" else code.name.lower())


def test_a_body_that_is_too_large_has_grpcs_code() -> None:
    assert CallStatus.of(as_on_grpc(MessageTooLarge("large"))).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert CallStatus.of(as_on_grpc(RequestTimeout("slow"))).code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b'"x"', b"5", b"{", b"{}{}", b"\xff\xfe", b'{"nothing": 1}', b'{"\\ud800": 1}',
        b'{"prompts": [{"text": "\\ud800"}]}', b'{"prompts": 5}', b'{"prompts": [5]}', b'{"truncate": "yes"}',
        b'{"options":' + b"[" * 20_000 + b"]" * 20_000 + b"}", b'{"options": {"numChoices": ' + b"9" * 10_000 + b"}}",
        b'{"model": "a", "model": "b"}', b'{"prompts": [{"text": "a", "tokenIds": {"ids": [1]}}]}',
        b'{"options":' * 200 + b"1" + b"}" * 200, b'{"options": {"numChoices": -1}}', b'{"context": {"priority": 0.5}}',
        b'{"x": "' + b"y" * 2 * LARGE_BYTES + b'"}',
    ],
    ids=range(22),
)  # fmt: skip
def test_json_that_is_no_message(data: bytes) -> None:
    async def main() -> None:
        codec = Json()
        with pytest.raises(InvalidRequest) as caught:
            await codec.read(data, gateway_pb2.GenerateRequest)
        assert caught.value.reason == "MALFORMED_MESSAGE" and len(caught.value.message.encode()) < 1000
        codec.close()

    asyncio.run(main())


def test_json_of_both_sizes_is_the_same_message() -> None:
    async def main() -> None:
        codec = Json()
        for size in (10, LARGE_BYTES * 2):
            message = gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt(text="ä" * size)])
            data = await codec.write(message)
            assert (b"\n" in data) is False
            assert await codec.read(data, gateway_pb2.GenerateRequest) == message
        codec.close()

    asyncio.run(main())
