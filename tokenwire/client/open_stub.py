"""The gateway's methods, as long as their client is open. Does not know what they are called with."""

from typing import Any

from tokenwire.errors import FailedPrecondition
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
            try:
                return begin(*arguments, **options)
            except ValueError:  # of a channel that is closed
                self.refuse_closed()
                raise

        return call

    def refuse_closed(self) -> None:
        """Raise FailedPrecondition once it is closed."""
        if self._closed:
            raise FailedPrecondition(f"the client of {self._target} is closed: make another", reason="CLIENT_CLOSED")

    def close(self) -> None:
        """Nothing begins any more."""
        self._closed = True
