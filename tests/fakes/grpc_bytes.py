"""What a gRPC client sends for one call, as bytes, for clients that send a part of it or read none of the answer."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS, DATA = 1, 4, 0
END_STREAM, END_HEADERS = 1, 4


def call_bytes(method: str, message: bytes) -> bytes:
    """The first call of a connection: preface, settings, head, and the one message that ends it."""
    head = {
        ":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost", "te": "trailers",
        "content-type": "application/grpc",
    }  # fmt: skip
    fields = b"".join(b"\0" + string(name) + string(value) for name, value in head.items())
    body = b"\0" + len(message).to_bytes(4) + message
    return (
        PREFACE + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, fields) + frame(DATA, END_STREAM, 1, body)
    )


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame of HTTP/2 (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def string(text: str) -> bytes:
    """A string of HPACK as it is (RFC 7541, 5.2). Raises ValueError for more than 126 bytes."""
    if len(text) > 126:
        raise ValueError(f"{text!r:.40}: at most 126 bytes")
    return bytes([len(text)]) + text.encode()
