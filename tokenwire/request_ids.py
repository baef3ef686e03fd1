"""Which request ids are taken on one session. Does not know why a sequence ends."""

from collections.abc import Hashable, Iterable

from tokenwire.errors import AlreadyExists, FieldViolation


class RequestIds:
    """Holds each id until every handle of its request was cancelled by the peer, or its end was sent."""

    def __init__(self) -> None:
        self._key_of: dict[int, Hashable] = {}
        """By handle."""
        self._num_handles: dict[Hashable, int] = {}
        """Those that hold a key still."""

    def refuse_taken(self, request_id: str, *part: int) -> None:
        """Raise AlreadyExists where a request holds this id. `part`: what else must be equal."""
        if (request_id, *part) in self._num_handles:
            message = f"context.request_id {request_id!r} is running on this session: give each its own"
            taken = [FieldViolation("context.request_id", "in use on this session")]
            raise AlreadyExists(message, reason="DUPLICATE_REQUEST", violations=taken)

    def take(self, handles: Iterable[int], request_id: str, *part: int) -> None:
        """A request has it, with all these handles."""
        key = (request_id, *part)
        for handle in handles:
            self._key_of[handle] = key
            self._num_handles[key] = self._num_handles.get(key, 0) + 1

    def let_go(self, handle: int) -> None:
        """A handle was cancelled, or its end was sent; one that holds nothing is ignored."""
        key = self._key_of.pop(handle, None)
        if key is not None:
            self._num_handles[key] -= 1
            if not self._num_handles[key]:
                del self._num_handles[key]
