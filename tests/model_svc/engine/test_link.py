import socket
from collections.abc import Iterator

import pytest

from model_svc.engine.link import EngineLink, encode


@pytest.fixture
def ends() -> Iterator[tuple[EngineLink, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield EngineLink(ours), theirs


def test_messages_arrive_whole_and_in_order_however_they_are_cut(ends: tuple[EngineLink, socket.socket]) -> None:
    link, other = ends
    data = encode(["one"]) + encode({"two": 2}) + encode("x" * 100_000)
    received: list[object] = []
    for start in range(0, len(data), 9973):
        other.sendall(data[start : start + 9973])
        received += link.receive(timeout_s=0)
    assert received == [["one"], {"two": 2}, "x" * 100_000]


def test_waiting_for_nothing_returns_at_once_and_for_something_blocks_until_it_is_whole(
    ends: tuple[EngineLink, socket.socket],
) -> None:
    link, other = ends
    assert link.receive(timeout_s=0) == []
    other.sendall(encode(7))
    assert link.receive(timeout_s=None) == [7]


def test_a_closed_other_end_is_an_eof_both_ways(ends: tuple[EngineLink, socket.socket]) -> None:
    link, other = ends
    other.close()
    with pytest.raises(EOFError):
        link.receive(timeout_s=None)
    with pytest.raises(EOFError):
        link.send("anyone?")


def test_the_longest_wait_is_one_that_the_system_can_count(ends: tuple[EngineLink, socket.socket]) -> None:
    link, other = ends
    other.sendall(encode(7))
    assert link.receive(timeout_s=1e300) == [7]
