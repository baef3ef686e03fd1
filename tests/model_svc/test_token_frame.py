import pytest

from model_svc import token_frame
from model_svc.token_frame import TokenFrames
from tokenwire.errors import FieldViolation, InvalidRequest
from tokenwire.requests import FinishReason, Terminal, TokenLogprob

TOP = tuple(TokenLogprob(i, -1.0) for i in range(4))


def test_tokens_are_columns_and_steps_merge() -> None:
    frames = TokenFrames()
    assert frames.is_empty
    for handle, token_id in ((7, 1), (9, 2), (7, 3)):
        frames.add_token(handle, token_id, None)
        frames.end_step()
    frames.add_end(9, Terminal(FinishReason.LENGTH))
    assert not frames.is_empty and not frames.has_more
    frame = frames.take()
    assert (list(frame.handles), list(frame.counts), list(frame.token_ids)) == ([7, 9], [2, 1], [1, 3, 2])
    assert [finish.handle for finish in frame.finishes] == [9] and frames.is_empty
    frames.add_token(7, 4, None)
    assert not frames.take().counts, "empty: one each"


def test_logprobs_are_parallel_to_tokens_and_spread_over_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_frame, "MAX_LOGPROB_ENTRIES", 20)
    frames = TokenFrames()
    frames.add_prompt_logprobs(7, [TokenLogprob(i, -2.0) for i in range(3)])
    frames.end_step()
    assert not frames.is_empty
    for token_id in range(9):
        frames.add_token(7, token_id, TokenLogprob(token_id, -0.5, TOP))
        frames.add_token(8, token_id, None)
        frames.end_step()
    frames.add_end(7, Terminal(FinishReason.LENGTH))
    frames.end_step()
    taken = []
    while not frames.is_empty:
        taken.append(frames.take())
    assert len(taken) == 3
    assert [entry.token_id for entry in taken[0].logprobs[0].prompt] == [0, 1, 2]
    seen: list[int] = []
    for frame in taken:
        counts = dict(zip(frame.handles, frame.counts or [1] * len(frame.handles), strict=True))
        (entries,) = frame.logprobs
        assert entries.handle == 7 and len(entries.tokens) == counts[7]
        seen += [entry.token_id for entry in entries.tokens]
    assert seen == list(range(9))
    assert [bool(frame.finishes) for frame in taken] == [False, False, True]


def test_many_errors_are_spread_over_frames() -> None:
    frames = TokenFrames()
    error = InvalidRequest("x" * 2000, violations=[FieldViolation("a", "b" * 2000)] * 10)
    for handle in range(1, 1001):
        frames.add_end(handle, Terminal(FinishReason.ERROR, error=error))
        frames.end_step()
    taken = []
    while not frames.is_empty:
        taken.append(frames.take())
    assert all(frame.ByteSize() < 2**20 for frame in taken)
    assert [finish.handle for frame in taken for finish in frame.finishes] == list(range(1, 1001))
    assert frames.num_unsent == 0
