"""What a backend does with the rows of a frame: who takes them, and in which order."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from gateway.backend import Backend
from gateway.metrics import GatewayMetrics
from gateway.submission import Choice
from tokenwire.requests import Terminal
from tokenwire.v1 import tokenizer_pb2

Row = tuple[str, int, str, int]
"""How it was taken, whose it is, its text and its tokens."""


class Sink:
    """Notes what it takes."""

    def __init__(self, number: int, rows: list[Row], *, direct: bool) -> None:
        self._number = number
        self._rows = rows
        self.direct = self._taker("direct") if direct else None
        self.burst = self._taker("burst") if direct else None

    def _taker(self, how: str) -> Callable[[str, int], None]:
        return lambda text, num_tokens: self._rows.append((how, self._number, text, num_tokens))

    def on_text(self, text: str, num_tokens: int, *_: Any) -> None:
        self._rows.append(("on_text", self._number, text, num_tokens))

    def on_finish(self, terminal: Terminal) -> None:
        raise AssertionError("nothing ends here")


def taken(*rows: tuple[int, str, int], direct: bool = True) -> list[Row]:
    """What becomes of these rows of one frame."""
    found: list[Row] = []

    async def main() -> None:
        backend = Backend("127.0.0.1:1", GatewayMetrics(CollectorRegistry()), SimpleNamespace(), lambda: None)  # type: ignore[arg-type]
        submission: Any = SimpleNamespace(started=False)
        receivers = {handle: Choice(submission, Sink(handle, found, direct=direct)) for handle in (1, 2)}
        frame = tokenizer_pb2.SessionResponse()
        for handle, text, num_tokens in rows:
            frame.handles.append(handle)
            frame.texts.append(text)
            frame.num_tokens.append(num_tokens)
        backend.on_frame(SimpleNamespace(receivers=receivers), frame)  # type: ignore[arg-type]
        sums = {handle: sum(row[2] for row in rows if row[0] == handle) for handle in receivers}
        await backend.close()
        assert {handle: choice.num_tokens for handle, choice in receivers.items()} == sums

    asyncio.run(main())
    return found


def test_a_frame_with_one_row_each_is_taken_at_once() -> None:
    assert taken((1, "a", 1), (2, "x", 2)) == [("direct", 1, "a", 1), ("direct", 2, "x", 2)]


def test_a_frame_with_several_rows_for_somebody_is_a_burst() -> None:
    rows = taken((1, "a", 1), (2, "x", 1), (1, "b", 1))
    assert rows == [("burst", 1, "a", 1), ("burst", 2, "x", 1), ("burst", 1, "b", 1)]


def test_rows_without_text_and_of_those_who_take_no_text_alone_go_the_long_way() -> None:
    assert taken((1, "", 1), (2, "x", 1)) == [("on_text", 1, "", 1), ("direct", 2, "x", 1)]
    rows = taken((1, "a", 1), (1, "b", 1), direct=False)
    assert rows == [("on_text", 1, "a", 1), ("on_text", 1, "b", 1)]
