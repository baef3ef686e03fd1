from tests.fakes.logprobs import logprobs_of
from tokenwire.logprobs import MAX_ENTRIES, SequenceLogprobs, has_room, joined


def test_what_comes_later_is_appended() -> None:
    first, more = SequenceLogprobs(logprobs_of([1], 2)), SequenceLogprobs(logprobs_of([2, 3], 0), logprobs_of([9], 1))
    assert joined(None, more) is more
    found = joined(first, more)
    assert found == SequenceLogprobs([*logprobs_of([1], 2), *logprobs_of([2, 3], 0)], logprobs_of([9], 1))
    assert found is first and found.num_entries == 3 + 2 + 2


def test_what_is_too_large_for_a_message_comes_in_pieces_that_are_the_same_together() -> None:
    prompt = logprobs_of(range(2000), 20)
    whole = SequenceLogprobs(logprobs_of(range(3), 20), list(prompt))
    pieces = whole.pieces()
    assert len(pieces) > 1 and all(piece.num_entries <= MAX_ENTRIES for piece in pieces)
    assert [logprob for piece in pieces for logprob in piece.prompt] == prompt
    assert [len(piece.tokens) for piece in pieces] == [0] * (len(pieces) - 1) + [3], "the output's last"
    assert not has_room(pieces[0], pieces[1]) and has_room(None, pieces[0]) and has_room(pieces[0], None)
    small = SequenceLogprobs(logprobs_of([1], 2))
    assert small.pieces() == [small]
