"""How a call ended, as both protocols for browsers tell it. Does not know how they write it."""

from dataclasses import dataclass

import grpc
from google.rpc.status_pb2 import Status as RpcStatus

from gateway.http.errors import RequestTimeout
from tokenwire.errors import DeadlineExceeded, MessageTooLarge, TokenwireError, let_go
from tokenwire.status import status_bytes


class BodyTooLarge(MessageTooLarge):
    """A body over its limit, with the code that gRPC has for it."""

    code = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True, slots=True)
class CallStatus:
    """What a call ends with that is not OK."""

    code: grpc.StatusCode
    message: str
    details: bytes = b""
    """A serialized google.rpc.Status; empty: there is no more to say."""

    @classmethod
    def of(cls, error: TokenwireError) -> "CallStatus":
        """Of an error that no handler raised. Lets go of what it came of."""
        let_go(error)
        return cls(grpc.StatusCode[error.code], error.told, status_bytes(error))

    @property
    def number(self) -> int:
        """The code on the wire of gRPC."""
        number: int = self.code.value[0]
        return number

    def parsed_details(self) -> RpcStatus:
        """The details as a message."""
        return RpcStatus.FromString(self.details)


def as_on_grpc(error: TokenwireError) -> TokenwireError:
    """What is wrong with a body, with the code that gRPC has for it."""
    if type(error) is MessageTooLarge:
        return BodyTooLarge(error.message)
    if isinstance(error, RequestTimeout):
        return DeadlineExceeded(error.message, reason=error.reason)
    return error
