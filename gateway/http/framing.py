"""Where heads and bodies end in what a connection reads, so that the parser is given one of them at a time.

The parser tells what it has read, and not how far in. So who bounds heads, extensions and announced bodies has to look
for their ends. Whether what is read is HTTP is the parser's to say. Knows no limits.
"""

import re
from dataclasses import dataclass

SIZE = re.compile(rb"[0-9a-fA-F]+")
SIZE_LINE_BYTES = 18
"""Of a chunk's size without extensions: sixteen digits and their end."""
ANNOUNCED = "tokenwire.announced"
"""Where an `Announced` of the request's body is found in an ASGI scope's extensions."""
END_OF_HEAD = b"\n\r\n"


@dataclass(slots=True)
class Announced:
    """What the sizes of a body's chunks come to so far, those that are still to come among them."""

    num_bytes: int = 0


class Framing:
    """One connection's. Told by `body` that a head is there, by `next` that a request is whole."""

    def __init__(self) -> None:
        self.num_head_bytes = 0
        """Of the open request: those of its head, its chunks' extensions and the fields behind its body."""
        self.announced = Announced()
        """Of the open body; nothing where it does not come in chunks."""
        self._in_chunks = False
        self._left = 0
        """Bytes to the end of the body, or of the chunk with its line end."""
        self._line = b""
        """The beginning of a chunk's size line."""
        self._tail = b""
        """The last bytes of the head, or of the fields behind a body."""

    def next(self) -> None:
        """A request is whole: a head follows."""
        self.num_head_bytes = self._left = 0
        self._in_chunks = False
        self._line = self._tail = b""

    def body(self, headers: list[tuple[bytes, bytes]]) -> None:
        """A head with these fields has been read: what follows is its body. Lengths have been checked by the parser."""
        self._tail = b""
        fields = dict(headers)
        self._in_chunks = b"transfer-encoding" in fields
        self.announced = Announced()
        if not self._in_chunks:
            self._left = int(fields.get(b"content-length", b"0"))

    def part(self, data: bytes, begin: int) -> int:
        """Where what begins there ends: a head, or what there is of a body. What of it is head is counted."""
        if self._in_chunks:
            return self._chunks(data, begin)
        if self._left:
            end = min(len(data), begin + self._left)
            self._left -= end - begin
            return end
        return self._head(data, begin)

    def _head(self, data: bytes, begin: int) -> int:
        """The end of a head, or of the fields behind a body. Ends that are none may be found: they do no harm."""
        tail = self._tail
        across = (tail + data[begin : begin + 2]).find(END_OF_HEAD)
        if across >= 0:
            end = begin + across - len(tail) + len(END_OF_HEAD)
        else:
            found = data.find(END_OF_HEAD, begin)
            end = len(data) if found < 0 else found + len(END_OF_HEAD)
        self._tail = (tail + data[max(begin, end - 2) : end])[-2:]
        self.num_head_bytes += end - begin
        return end

    def _chunks(self, data: bytes, begin: int) -> int:
        at = begin
        while at < len(data):
            if self._tail:
                return self._head(data, at)
            if self._left:
                step = min(len(data) - at, self._left)
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at) + 1 or len(data)
            before = len(self._line)
            self._line += data[at:end]
            self.num_head_bytes += max(0, len(self._line) - max(before, SIZE_LINE_BYTES))
            at = end
            if self._line.endswith(b"\n"):
                self._begin_chunk()
        return at

    def _begin_chunk(self) -> None:
        line, self._line = self._line, b""
        digits = SIZE.match(line)
        if digits is None:
            return  # the parser refuses it
        size = int(digits[0], 16)
        if size == 0:
            self._tail = b"\n"
        else:
            self.announced.num_bytes += size
            self._left = size + len(b"\r\n")
