"""Errors on the wire: `TokenwireError` ↔ google.rpc.Status, inside a terminal event or as a call's status.

Details: BadRequest for `violations`, RetryInfo and QuotaFailure for `retry_after_s`, ErrorInfo for `reason`.
"""

import contextlib
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status as RpcStatus

from tokenwire.errors import (
    BY_CODE,
    FieldViolation,
    MessageTooLarge,
    Overloaded,
    TokenwireError,
    Unavailable,
    let_go,
)
from tokenwire.tls_problems import tls_problem
from tokenwire.v1 import common_pb2

DOMAIN = "tokenwire"
"""ErrorInfo.domain: whose `reason` strings these are."""

TLS_FAILED = "TLS_FAILED"
"""Reason of an Unavailable where a connection failed over TLS."""

NEVER_TAKEN = "CANCELLED"
"""What gRPC's C core tells, as CANCELLED, of a call that has come to a server which ends before it begins the call
(https://github.com/grpc/grpc/issues/41785), or which has too many that it did not begin yet. Who cancels a call hears
other words.
"""

STATUS_DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata in which gRPC carries a google.rpc.Status."""

CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def to_wire(error: TokenwireError) -> common_pb2.Status:
    """The error as a terminal event carries it."""
    status = common_pb2.Status(code=grpc.StatusCode[error.code].value[0], message=error.told)
    for detail in details_of(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def details_of(error: TokenwireError) -> list[Any]:
    """The google.rpc messages that say more than code and message."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in error.told_violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, Overloaded):
        violation = error_details_pb2.QuotaFailure.Violation(subject=error.reason, description=error.told)
        details.append(error_details_pb2.QuotaFailure(violations=[violation]))
    return details


def from_wire(status: common_pb2.Status | RpcStatus) -> TokenwireError:
    """The error that a terminal event or a call's details carry."""
    reason, violations, retry_after_s = "", [], None
    for packed in status.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        try:
            if packed.Unpack(info):
                reason = info.reason
            elif packed.Unpack(bad):
                violations = [FieldViolation(v.field, v.description) for v in bad.field_violations]
            elif packed.Unpack(retry):
                retry_after_s = max(0.0, retry.retry_delay.ToMilliseconds() / 1000)
        except DecodeError:
            continue  # a peer that names a type and sends something else: its code and message stand
    code = CODES.get(status.code, grpc.StatusCode.UNKNOWN).name
    cls = BY_CODE.get(code, TokenwireError)
    if reason == MessageTooLarge.default_reason:
        cls = MessageTooLarge
    return cls(status.message, reason=reason, violations=violations, retry_after_s=retry_after_s)


def from_rpc_error(error: grpc.RpcError) -> TokenwireError:
    """The error of a failed call, with its details when the server sent any."""
    trailing = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    for key, value in trailing or ():
        if key == STATUS_DETAILS_KEY:
            with contextlib.suppress(DecodeError):
                return from_wire(RpcStatus.FromString(value))
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    message = error.details() if hasattr(error, "details") else str(error)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (message or ""):
        return MessageTooLarge(f"message too large: {message}")
    if code is grpc.StatusCode.CANCELLED and message == NEVER_TAKEN:
        return Unavailable("the server went away before it took the call")
    if code is grpc.StatusCode.UNAVAILABLE and (problem := tls_problem(message or "")):
        return Unavailable(f"{problem} ({message})", reason=TLS_FAILED)
    return BY_CODE.get(code.name, TokenwireError)(message or code.name)


def status_bytes(error: TokenwireError) -> bytes:
    """The error as a serialized google.rpc.Status, which calls end with."""
    data: bytes = RpcStatus.FromString(to_wire(error).SerializeToString()).SerializeToString()
    return data


async def abort(context: grpc.aio.ServicerContext, error: TokenwireError) -> NoReturn:
    """End the call with this error's status and details. Raises, as `context.abort` does."""
    details = status_bytes(error)
    let_go(error)
    await context.abort(grpc.StatusCode[error.code], error.told, ((STATUS_DETAILS_KEY, details),))
    raise AssertionError("context.abort returned")
