"""Where heads and bodies end in what is read, by the parser that is given one of them at a time."""

import httptools
import pytest

from gateway.http.framing import Framing

HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
WITH_LENGTH = (HEAD + b"Content-Length: 7\r\n\r\n", b"\n\r\n\n\r\nx")
IN_CHUNKS = (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3;a=b\r\n\n\r\n\r\n0A\r\n0123456789\r\n00\r\nX: y\r\n\r\n")
EMPTY = (b"\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"")
REQUESTS = [WITH_LENGTH, IN_CHUNKS, EMPTY, IN_CHUNKS, WITH_LENGTH, EMPTY]


class Reader:
    """Feeds a parser part by part, and notes where heads and requests end."""

    def __init__(self) -> None:
        self.framing = Framing()
        self.parser = httptools.HttpRequestParser(self)
        self.headers: list[tuple[bytes, bytes]] = []
        self.num_read = 0
        self.ends: list[int] = []
        self.announced: list[int] = []

    def on_message_begin(self) -> None:
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.ends.append(self.num_read)
        self.framing.body(self.headers)

    def on_message_complete(self) -> None:
        self.ends.append(self.num_read)
        self.announced.append(self.framing.announced.num_bytes)
        self.framing.next()

    def read(self, data: bytes) -> None:
        begin = 0
        while begin < len(data):
            end = self.framing.part(data, begin)
            self.num_read += end - begin
            self.parser.feed_data(data[begin:end])
            begin = end


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 11, 50, 10_000])
def test_no_part_goes_beyond_the_end_of_a_head_or_a_body(step: int) -> None:
    data = b"".join(head + body for head, body in REQUESTS)
    reader, expected, at = Reader(), [], 0
    for head, body in REQUESTS:
        expected += [at + len(head), at + len(head) + len(body)]
        at = expected[-1]
    for begin in range(0, len(data), step):
        reader.read(data[begin : begin + step])
    assert reader.ends == expected
    assert reader.announced == [13 if body == IN_CHUNKS[1] else 0 for _, body in REQUESTS]


def test_what_is_head_is_counted_by_the_byte() -> None:
    reader = Reader()
    reader.read(IN_CHUNKS[0])
    assert reader.framing.num_head_bytes == len(IN_CHUNKS[0])
    reader.read(b"3\r\nabc\r\n4;" + b"a" * 100)
    assert reader.framing.num_head_bytes == len(IN_CHUNKS[0]) + 102 - 18
    reader.read(b"\r\nabcd\r\n0\r\nX: y")
    assert reader.framing.num_head_bytes == len(IN_CHUNKS[0]) + 104 - 18 + 4
    assert reader.framing.announced.num_bytes == 7
    reader.read(b"\r\n\r\n")
    assert reader.framing.num_head_bytes == 0
