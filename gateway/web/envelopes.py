"""Messages in a body, each behind five bytes: its flags, and its length in big-endian order.

Connect's streams and gRPC-Web have the same form and differ in the flag of the last one. Sources: the Connect
protocol's reference (https://connectrpc.com/docs/protocol), and PROTOCOL-WEB.md of gRPC.
"""

import struct

from tokenwire.errors import InvalidRequest, Unsupported

HEAD = struct.Struct(">BI")
COMPRESSED = 0x01


def envelope(flags: int, payload: bytes) -> bytes:
    """One message with its head."""
    return HEAD.pack(flags, len(payload)) + payload


def only_message(body: bytes) -> bytes:
    """The payload of a body of one message. Raises InvalidRequest, and Unsupported for more or none."""
    if not body:
        raise Unsupported("this method takes one message, and none came", reason="MESSAGE_COUNT")
    if len(body) < HEAD.size:
        raise _cut(f"{len(body)} bytes, where a message begins with {HEAD.size}")
    flags, length = HEAD.unpack_from(body)
    if flags & COMPRESSED:
        raise Unsupported("compressed messages are not read here: send them as they are", reason="COMPRESSION")
    if flags:
        raise InvalidRequest(f"flags {flags:#04x} are not allowed before a request's message", reason="MALFORMED_FRAME")
    rest = len(body) - HEAD.size
    if rest < length:
        raise _cut(f"{rest} of the {length} bytes that its head announces")
    if rest > length:
        raise Unsupported("this method takes one message, and more came", reason="MESSAGE_COUNT")
    return body[HEAD.size :]


def _cut(what: str) -> InvalidRequest:
    return InvalidRequest(f"the body's message is cut: {what}", reason="MALFORMED_FRAME")
