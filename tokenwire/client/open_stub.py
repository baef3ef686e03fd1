"""The gateway's methods, as long as their client is open. Does not know what they are called with."""

from typing import Any

import grpc

from tokenwire.errors import FailedPrecondition
from tokenwire.forks import call_begins, refuse_lost_grpc
from tokenwire.v1 import gateway_pb2_grpc


class OpenStub:
    """gRPC's stub, whose methods are not there once it is closed."""

    def __init__(self, channel: Any, target: str) -> None:
        self._stub: Any = gateway_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        self._target = target
        self._closed = False

    def __getattr__(self, method: str) -> Any:
        """One method. Raises FailedPrecondition; so does a call of it once another thread has closed the client."""
        self.refuse_closed()
        begin = getattr(self._stub, method)

        def call(*arguments: Any, **options: Any) -> Any:
            ended = call_begins()
            try:
                begun = begin(*arguments, **options)
            except BaseException as error:
                ended()
                if isinstance(error, ValueError):  # of a channel that is closed
                    self.refuse_closed()
                raise
            if not (isinstance(begun, grpc.RpcContext) and begun.add_callback(ended)):
                ended()
            return begun

        return call

    def refuse_closed(self) -> None:
        """Raise FailedPrecondition once it is closed, and in a forked process that has no gRPC."""
        refuse_lost_grpc()
        if self._closed:
            raise FailedPrecondition(f"the client of {self._target} is closed: make another", reason="CLIENT_CLOSED")

    def close(self) -> None:
        """Nothing begins any more."""
        self._closed = True
