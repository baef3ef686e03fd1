"""Lines out of a stream of bytes, each bounded. Does not know what they say."""

from collections.abc import Iterator


class Lines:
    """What a process says, line by line. Of a line that is too long the end is dropped, never told as another line."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._line = bytearray()
        self._num_dropped = 0

    def add(self, chunk: bytes) -> Iterator[tuple[bytes, int]]:
        """The lines that end in what has come, without their ends, and how many bytes of each were dropped."""
        *ends, rest = chunk.split(b"\n")
        for piece in ends:
            self._keep(piece)
            yield self._take()
        self._keep(rest)

    def end(self) -> Iterator[tuple[bytes, int]]:
        """What has no end, now that no more comes."""
        if self._line:
            yield self._take()

    def _keep(self, piece: bytes) -> None:
        room = self._max_bytes - len(self._line)
        self._line += piece[:room]
        self._num_dropped += max(0, len(piece) - room)

    def _take(self) -> tuple[bytes, int]:
        found = bytes(self._line), self._num_dropped
        self._line.clear()
        self._num_dropped = 0
        return found
