"""One output's text as server-sent events, from the frame that brought it to the connection in one call.

Everything but the text is made once. Knows neither what stands around a text nor when this may be used: see
`gateway.http.sse`.
"""

from collections.abc import Callable
from json.encoder import encode_basestring

from gateway.http.connection import Connection


class TextEvents:
    """Two `gateway.submission.Direct`. They do not raise: what goes wrong is told to `on_failure`."""

    __slots__ = ("_connection", "_num_bytes", "_on_failure", "_prefix", "_suffix", "quiet")

    def __init__(
        self, connection: Connection, before: str, after: str, on_failure: Callable[[Exception], None]
    ) -> None:
        """`before`, `after`: what stands around the text, written as JSON, in each event."""
        self._prefix, self._suffix = before.encode(), after.encode()
        self._num_bytes = len(self._prefix) + len(self._suffix)
        self._connection = connection
        self._on_failure = on_failure
        self.quiet = False
        """To be set by who wants to know whether something was written since."""

    def write(self, text: str, num_tokens: int) -> None:
        """One event with this text, as one chunk of the answer's body."""
        self.quiet = False
        try:
            body = encode_basestring(text).encode()
            size = self._num_bytes + len(body)
            connection = self._connection
            if connection.later:
                connection.flush()
            connection.transport.write(b"%x\r\n%b%b%b\r\n" % (size, self._prefix, body, self._suffix))
        except Exception as error:  # this answer's alone: the frame has others to serve
            self._on_failure(error)

    def write_later(self, text: str, num_tokens: int) -> None:
        """The same, in one write with the other events of this turn of the event loop."""
        self.quiet = False
        try:
            body = encode_basestring(text).encode()
            size = self._num_bytes + len(body)
            self._connection.write_later(b"%x\r\n%b%b%b\r\n" % (size, self._prefix, body, self._suffix))
        except Exception as error:
            self._on_failure(error)
