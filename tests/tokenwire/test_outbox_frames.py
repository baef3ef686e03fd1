"""What is much, or more than text, is spread over frames and keeps its order."""

from collections.abc import Sequence

import pytest

from tests.fakes.logprobs import logprobs_of
from tests.fakes.outbox_frames import LENGTH, is_silent, rows, take
from tokenwire.errors import FieldViolation, InvalidRequest
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.outbox import MAX_FRAME_CHARS, TextOutbox
from tokenwire.parsed import Parsed, ToolCall
from tokenwire.requests import FinishReason, Terminal
from tokenwire.v1 import common_pb2 as pb


def logprobs(*token_ids: int, prompt: Sequence[int] = (), num_top: int = 0) -> SequenceLogprobs:
    return SequenceLogprobs(logprobs_of(token_ids, num_top), logprobs_of(prompt, num_top))


def logprob_ids(frame) -> list[tuple[int, list[int], list[int]]]:
    """Handle, tokens and prompt tokens of each row that has log-probabilities."""
    return [(e.handle, [t.token_id for t in e.logprobs], [t.token_id for t in e.prompt_logprobs]) for e in frame.extras]


def calls(frame) -> list[tuple[int, str, list[tuple[int, str, str, str]]]]:
    """Handle, reasoning and calls of each row that has some."""
    return [(e.handle, e.reasoning, [(c.index, c.id, c.name, c.arguments) for c in e.tool_calls]) for e in frame.extras]


def test_much_text_is_spread_over_frames() -> None:
    outbox = TextOutbox()
    for handle in (1, 2, 3):
        outbox.open(handle)
        outbox.add_text(handle, "x" * (MAX_FRAME_CHARS // 2), 1)
    assert list(take(outbox).handles) == [1, 2]
    assert list(take(outbox).handles) == [3]


def test_log_probabilities_are_merged_with_their_text() -> None:
    outbox = TextOutbox()
    outbox.open(1)
    outbox.open(2)
    outbox.add_text(1, "", 0, logprobs=logprobs(prompt=[4, 5]))
    outbox.add_text(1, "a", 1, [7], logprobs(7))
    outbox.add_text(2, "x", 1)
    outbox.add_text(1, "bc", 2, [8, 9], logprobs(8, 9))
    outbox.add_text(1, "held back", 0)
    frame = take(outbox)
    assert sorted(rows(frame)) == [(1, "abcheld back", 3), (2, "x", 1)]
    assert logprob_ids(frame) == [(1, [7, 8, 9], [4, 5])] and list(frame.extras[0].token_ids) == [7, 8, 9]


def test_log_probabilities_follow_the_last_of_their_tokens_and_the_prompts_need_no_credit() -> None:
    outbox = TextOutbox()
    outbox.open(1, credit=0)
    outbox.add_text(1, "", 0, logprobs=logprobs(prompt=[4, 5]))
    outbox.add_text(1, "abc", 3, logprobs=logprobs(1, 2, 3))
    outbox.add_text(1, "d", 1, logprobs=logprobs(4))
    frame = take(outbox)
    assert rows(frame) == [(1, "", 0)] and logprob_ids(frame) == [(1, [], [4, 5])]
    assert is_silent(outbox)
    outbox.grant(1, 2)
    frame = take(outbox)
    assert rows(frame) == [(1, "", 2)] and logprob_ids(frame) == []
    outbox.grant(1, 2)
    frame = take(outbox)
    assert rows(frame) == [(1, "abcd", 2)] and logprob_ids(frame) == [(1, [1, 2, 3, 4], [])]


def test_many_errors_are_spread_over_frames_that_a_client_can_read() -> None:
    outbox = TextOutbox()
    error = InvalidRequest("x" * 2000, violations=[FieldViolation("a", "b" * 2000)] * 10)
    for handle in range(1, 1001):
        outbox.open(handle)
        outbox.finish(handle, Terminal(FinishReason.ERROR, error=error))
    frames = []
    while outbox.num_open:
        frames.append(take(outbox))
    assert all(frame.ByteSize() < 2**20 for frame in frames)
    assert [finish.handle for frame in frames for finish in frame.finishes] == list(range(1, 1001))


@pytest.mark.parametrize("credit", [None, 2000])
def test_many_log_probabilities_are_spread_over_frames_that_a_client_can_read(credit: int | None) -> None:
    outbox = TextOutbox()
    outbox.open(1, credit)
    prompt, tokens = range(1, 3000), range(1000)
    outbox.add_text(1, "", 0, logprobs=logprobs(prompt=prompt, num_top=20))
    for token in tokens:
        outbox.add_text(1, "x", 1, [token], logprobs(token, num_top=20))
    outbox.finish(1, LENGTH)
    frames = []
    while outbox.num_open:
        frames.append(take(outbox))
    assert all(frame.ByteSize() < 4 * 2**20 and len(frame.handles) == 1 for frame in frames) and len(frames) > 3
    found = [row for frame in frames for row in logprob_ids(frame)]
    assert [token for _, _, row in found for token in row] == list(prompt)
    assert [token for _, row, _ in found for token in row] == list(tokens)
    assert [len(frame.extras[0].logprobs) for frame in frames] == [frame.num_tokens[0] for frame in frames]
    assert "".join(frame.texts[0] for frame in frames) == "x" * len(tokens)
    assert [len(frame.finishes) for frame in frames] == [0] * (len(frames) - 1) + [1]


def test_pieces_of_calls_and_reasoning_are_merged() -> None:
    outbox = TextOutbox()
    outbox.open(1)
    outbox.add_text(1, "", 1, [4], parsed=Parsed("Hm"))
    outbox.add_text(1, "", 1, [5], parsed=Parsed("."))
    outbox.add_text(1, "Wait", 1, [6])
    outbox.add_text(1, "", 1, [7], parsed=Parsed("", [ToolCall("c1", "f")]))
    outbox.add_text(1, "", 1, [8], parsed=Parsed("", [ToolCall(arguments='{"a"')]))
    outbox.add_text(1, "", 1, [9], parsed=Parsed("", [ToolCall(arguments=": 1}"), ToolCall("c2", "g", "{}", 1)]))
    frame = take(outbox)
    assert rows(frame) == [(1, "Wait", 6)] and list(frame.extras[0].token_ids) == [4, 5, 6, 7, 8, 9]
    assert calls(frame) == [(1, "Hm.", [(0, "c1", "f", '{"a": 1}'), (1, "c2", "g", "{}")])]
    outbox.add_text(1, "", 0, parsed=Parsed("", [ToolCall(arguments=" ", index=1)]))
    assert calls(take(outbox)) == [(1, "", [(1, "", "", " ")])]


def test_calls_follow_the_last_of_their_tokens() -> None:
    outbox = TextOutbox()
    outbox.open(1, credit=0)
    outbox.add_text(1, "", 2, parsed=Parsed("Hm"))
    outbox.add_text(1, "", 1, parsed=Parsed("", [ToolCall("c1", "f")]))
    outbox.finish(1, LENGTH)
    assert is_silent(outbox)
    outbox.grant(1, 1)
    assert calls(take(outbox)) == []
    outbox.grant(1, 1)
    assert calls(take(outbox)) == [(1, "Hm", [])]
    outbox.grant(1, 1)
    frame = take(outbox)
    assert calls(frame) == [(1, "", [(0, "c1", "f", "")])] and len(frame.finishes) == 1


def test_what_is_split_from_the_text_fills_frames_as_text_does() -> None:
    outbox = TextOutbox()
    for handle in range(1, 7):
        outbox.open(handle)
        outbox.add_text(handle, "", 1, parsed=Parsed("x" * (MAX_FRAME_CHARS // 2)))
    assert [len(take(outbox).handles) for _ in range(3)] == [2, 2, 2]


def test_text_that_waits_keeps_its_order_when_more_than_text_comes_behind_it() -> None:
    outbox = TextOutbox()
    outbox.open(1)
    outbox.open(2)
    outbox.add_text(1, "a", 1)
    outbox.add_text(2, "x", 1)
    outbox.add_text(1, "b", 1, [8], logprobs(8))
    outbox.add_text(1, "c", 1)
    frame = take(outbox)
    assert sorted(rows(frame)) == [(1, "abc", 3), (2, "x", 1)]
    assert logprob_ids(frame) == [(1, [8], [])]


def test_text_alone_that_does_not_fit_waits_for_the_next_frame_and_its_terminal_with_it() -> None:
    outbox = TextOutbox()
    for handle in (1, 2, 3):
        outbox.open(handle)
        outbox.add_text(handle, "x" * MAX_FRAME_CHARS, 1)
        outbox.finish(handle, LENGTH)
    outbox.add_text(3, "late", 1)
    found = [take(outbox) for _ in range(3)]
    assert [list(frame.handles) for frame in found] == [[1], [2], [3]]
    ended = [finish.handle for frame in found for finish in frame.finishes]
    while outbox.num_open:
        ended += [finish.handle for finish in take(outbox).finishes]
    assert ended == [1, 2, 3] and all(set(frame.texts[0]) == {"x"} for frame in found)


def test_rows_and_text_alone_share_a_frame_when_there_is_much_of_both() -> None:
    outbox = TextOutbox()
    for handle in range(1, 9):
        outbox.open(handle, credit=9 if handle > 4 else None)
        outbox.add_text(handle, "x" * (MAX_FRAME_CHARS // 4), 1)
    first = take(outbox)
    assert {handle > 4 for handle in first.handles} == {True, False}
    assert sum(map(len, first.texts)) <= MAX_FRAME_CHARS
    rest = list(first.handles)
    while len(rest) < 8:
        rest += take(outbox).handles
    assert sorted(rest) == list(range(1, 9))


def test_text_alone_that_its_reader_takes_back_is_dropped_and_an_ordinary_end_becomes_cancelled() -> None:
    outbox = TextOutbox()
    outbox.open(1)
    outbox.add_text(1, "held", 1)
    outbox.discard_text(1)
    outbox.add_text(1, "late", 1)
    outbox.finish(1, LENGTH)
    frame = take(outbox)
    assert rows(frame) == [] and [f.reason for f in frame.finishes] == [pb.FINISH_REASON_CANCELLED]
