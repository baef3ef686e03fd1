import asyncio
import time

import pytest

from tests.fakes.outbox_frames import LENGTH, is_silent, rows, take
from tokenwire.errors import InvalidRequest
from tokenwire.outbox import TextOutbox
from tokenwire.requests import FinishReason, Terminal, Usage
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import tokenizer_pb2


def test_text_that_waits_is_merged_into_one_row_per_sequence_and_the_terminal_follows() -> None:
    outbox = TextOutbox()
    outbox.open(1)
    outbox.open(2)
    outbox.add_text(1, "a", 1, [7])
    outbox.add_text(2, "x", 1)
    outbox.add_text(1, "b", 2, [8, 9])
    outbox.finish(1, LENGTH)
    frame = take(outbox)
    assert sorted(rows(frame)) == [(1, "ab", 3), (2, "x", 1)]
    assert [(e.handle, list(e.token_ids)) for e in frame.extras] == [(1, [7, 8, 9])]
    assert [(f.handle, f.reason) for f in frame.finishes] == [(1, pb.FINISH_REASON_LENGTH)]
    assert outbox.num_open == 1


def test_credit_holds_text_and_terminal_back_and_lets_the_granted_tokens_go() -> None:
    outbox = TextOutbox()
    outbox.open(1, credit=2)
    for letter in "abcd":
        outbox.add_text(1, letter, 1)
    outbox.finish(1, LENGTH)
    assert rows(take(outbox)) == [(1, "ab", 2)]
    assert is_silent(outbox)
    outbox.grant(1, 1)
    assert rows(take(outbox)) == [(1, "c", 1)]
    assert outbox.num_undelivered == 1
    outbox.grant(1, 5)
    frame = take(outbox)
    assert rows(frame) == [(1, "d", 1)] and len(frame.finishes) == 1
    assert outbox.num_open == 0 and outbox.num_undelivered == 0


def test_a_deadline_waits_for_no_credit() -> None:
    outbox = TextOutbox()
    outbox.open(1, credit=2)
    for letter in "abcd":
        outbox.add_text(1, letter, 1)
    outbox.finish(1, Terminal(FinishReason.DEADLINE, usage=Usage(3, 0, 4)))
    frame = take(outbox)
    while not frame.finishes:
        assert rows(frame)
        frame = take(outbox)
    assert [(f.handle, f.reason) for f in frame.finishes] == [(1, pb.FINISH_REASON_DEADLINE)]
    assert outbox.num_open == 0


def test_an_end_waits_for_credit_as_long_as_the_sequence_has_time() -> None:
    async def main() -> None:
        outbox = TextOutbox()
        soon_s, later_s = time.monotonic() + 0.05, time.monotonic() + 3600
        error = InvalidRequest("no")
        ends = {1: LENGTH, 2: LENGTH, 3: Terminal(FinishReason.ERROR, error=error), 4: LENGTH, 5: LENGTH}
        for handle, terminal in ends.items():
            outbox.open(handle, credit=2 if handle != 5 else None)
            outbox.limit(handle, later_s if handle == 2 else soon_s)
            for letter in "ab" if handle == 4 else "abcde":
                outbox.add_text(handle, letter, 1)
            outbox.finish(handle, terminal)
        outbox.limit(9, soon_s)
        texts, ended = {}, {}
        while set(ended) != {1, 3, 4, 5}:
            frame = await asyncio.wait_for(outbox.next_frame(), 10)
            for handle, text, _ in rows(frame):
                texts[handle] = texts.get(handle, "") + text
            ended.update((finish.handle, finish) for finish in frame.finishes)
        assert texts == {1: "ab", 2: "ab", 3: "ab", 4: "ab", 5: "abcde"}
        found = {handle: pb.FinishReason.Name(finish.reason) for handle, finish in ended.items()}
        assert found == {
            1: "FINISH_REASON_DEADLINE", 3: "FINISH_REASON_ERROR", 4: "FINISH_REASON_LENGTH", 5: "FINISH_REASON_LENGTH",
        }  # fmt: skip
        assert ended[1].usage.completion_tokens == 5, "what was generated, sent or not"
        outbox.grant(2, 3)
        frame = await asyncio.wait_for(outbox.next_frame(), 10)
        assert rows(frame) == [(2, "cde", 3)] and frame.finishes[0].reason == pb.FINISH_REASON_LENGTH

    asyncio.run(main())


def test_no_time_is_kept_where_no_end_waits_for_credit_or_nobody_reads() -> None:
    async def main() -> None:
        outbox, loop = TextOutbox(), asyncio.get_running_loop()
        begun: list[asyncio.TimerHandle] = []
        call_later = loop.call_later
        loop.call_later = lambda *of: begun.append(call_later(*of)) or begun[-1]
        for handle, credit in ((1, None), (2, 1), (3, 0), (4, 0), (5, 0)):
            outbox.open(handle, credit)
            outbox.limit(handle, time.monotonic() + 3600)
            outbox.add_text(handle, "a", 1)
            if handle == 3:
                outbox.discard_text(handle)
        assert begun == []
        for handle in range(1, 6):
            outbox.finish(handle, LENGTH)
        assert len(begun) == 2
        outbox.grant(4, 1)
        await outbox.next_frame()
        assert [timer.cancelled() for timer in begun] == [True, False]
        outbox.close()
        assert begun[1].cancelled()

    asyncio.run(main())


def test_text_comes_with_the_last_of_its_tokens() -> None:
    outbox = TextOutbox()
    outbox.open(1, credit=1)
    outbox.add_text(1, "abc", 3)
    assert rows(take(outbox)) == [(1, "", 1)]
    outbox.grant(1, 1)
    assert rows(take(outbox)) == [(1, "", 1)]
    outbox.grant(1, 1)
    assert rows(take(outbox)) == [(1, "abc", 1)]


def test_text_without_tokens_needs_no_credit() -> None:
    outbox = TextOutbox()
    outbox.open(1, credit=0)
    outbox.add_text(1, "tail", 0)
    assert rows(take(outbox)) == [(1, "tail", 0)]


def test_a_sequence_without_credit_slows_no_other() -> None:
    outbox = TextOutbox()
    outbox.open(1, credit=0)
    outbox.open(2)
    outbox.add_text(1, "held", 1)
    outbox.add_text(2, "goes", 1)
    assert rows(take(outbox)) == [(2, "goes", 1)]
    assert is_silent(outbox)


def test_a_sequence_taken_back_ends_without_its_text() -> None:
    outbox = TextOutbox()
    outbox.open(1, credit=0)
    outbox.add_text(1, "held", 1)
    outbox.discard_text(1)
    outbox.add_text(1, "late", 1)
    outbox.finish(1, Terminal(FinishReason.CANCELLED))
    frame = take(outbox)
    assert rows(frame) == [] and frame.finishes[0].reason == pb.FINISH_REASON_CANCELLED


def test_a_finished_sequence_whose_held_text_is_dropped_ends_as_cancelled() -> None:
    outbox = TextOutbox()
    outbox.open(1, credit=0)
    outbox.add_text(1, "held", 1)
    outbox.finish(1, LENGTH)
    outbox.discard_text(1)
    finish = take(outbox).finishes[0]
    assert finish.reason == pb.FINISH_REASON_CANCELLED and finish.usage.completion_tokens == 5


def test_a_sequence_taken_back_that_ends_by_itself_says_whether_all_its_text_arrived() -> None:
    outbox = TextOutbox()
    for handle in (1, 2):
        outbox.open(handle)
        outbox.add_text(handle, "sent", 1)
    take(outbox)
    for handle in (1, 2):
        outbox.discard_text(handle)
    outbox.add_text(2, "lost", 1)
    for handle in (1, 2):
        outbox.finish(handle, LENGTH)
    reasons = {finish.handle: finish.reason for finish in take(outbox).finishes}
    assert reasons == {1: pb.FINISH_REASON_LENGTH, 2: pb.FINISH_REASON_CANCELLED}


def test_what_comes_after_the_terminal_or_for_nobody_is_ignored() -> None:
    outbox = TextOutbox()
    outbox.open(1)
    outbox.finish(1, LENGTH)
    outbox.finish(1, Terminal(FinishReason.CANCELLED))
    outbox.add_text(1, "late", 1)
    outbox.add_text(9, "unknown", 1)
    outbox.grant(9, 1)
    outbox.discard_text(9)
    frame = take(outbox)
    assert rows(frame) == [] and [f.reason for f in frame.finishes] == [pb.FINISH_REASON_LENGTH]


def test_a_drain_is_sent_at_once_and_frames_end_when_everything_has_ended() -> None:
    outbox = TextOutbox()
    outbox.open(1)
    outbox.drain("restart", grace_ms=500)
    frame = take(outbox)
    assert (frame.drain.reason, frame.drain.grace_ms) == ("restart", 500)
    assert is_silent(outbox)
    outbox.finish(1, LENGTH)
    assert len(take(outbox).finishes) == 1
    outbox.end()
    assert take(outbox) is None


def test_while_something_is_open_a_frame_comes_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwire.outbox.BEAT_S", 0.05)

    async def main() -> None:
        outbox = TextOutbox()
        waiting = asyncio.ensure_future(outbox.next_frame())
        await asyncio.sleep(0.2)
        assert not waiting.done(), "nothing is open"
        outbox.open(1, credit=0)
        assert await waiting == tokenizer_pb2.SessionResponse() == await outbox.next_frame()
        outbox.drain("restart")
        frame = await outbox.next_frame()
        assert frame is not None and frame.HasField("drain")
        assert await outbox.next_frame() == tokenizer_pb2.SessionResponse(), "it is still open"
        outbox.finish(1, LENGTH)
        frame = await outbox.next_frame()
        assert frame is not None and len(frame.finishes) == 1
        outbox.end()
        assert await outbox.next_frame() is None

    asyncio.run(main())


def test_what_crossed_with_a_drain_is_still_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenwire.outbox.QUIET_S", 0.1)

    async def main() -> None:
        outbox = TextOutbox()
        outbox.drain("restart")
        frame = await outbox.next_frame()
        assert frame is not None and frame.HasField("drain")
        waiting = asyncio.ensure_future(outbox.next_frame())
        await asyncio.sleep(0.02)
        outbox.open(1)
        await asyncio.sleep(0.2)
        assert not waiting.done(), "it is open"
        outbox.finish(1, LENGTH)
        frame = await waiting
        assert frame is not None and len(frame.finishes) == 1
        began_s = asyncio.get_running_loop().time()
        assert await outbox.next_frame() is None
        assert asyncio.get_running_loop().time() - began_s > 0.05
        outbox.end()
        assert await outbox.next_frame() is None, "a peer that has ended its side is not waited for"

    asyncio.run(main())
