from hypothesis import given
from hypothesis import strategies as st

from model_svc.engine.ngram_drafts import LONGEST_MATCH, MOST_CANDIDATES, MOST_INDEXED, NgramIndex


def plain_find(tokens: list[int], num_tokens: int) -> tuple[list[int], int]:
    """The same by looking through everything."""
    end = len(tokens) - 1
    pair = tokens[-2:]
    places = [at for at in range(end - 1, 0, -1) if tokens[at - 1 : at + 1] == pair][:MOST_CANDIDATES]
    if len(pair) < 2 or not places:
        return [], 0

    def matching(place: int) -> int:
        length = 2
        while length < LONGEST_MATCH and length <= place and tokens[place - length] == tokens[end - length]:
            length += 1
        return length

    best = max(places, key=matching)
    repeated = tokens[best + 1 :] * num_tokens
    return repeated[:num_tokens], matching(best)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9), st.lists(st.integers(1, 5), max_size=20))
def test_a_growing_index_finds_what_a_search_through_everything_finds(
    tokens: list[int], num_tokens: int, steps: list[int]
) -> None:
    index, known = NgramIndex(), 0
    for step in [*steps, 60]:
        known = min(len(tokens), known + step)
        if known:
            assert index.find(tokens[:known], num_tokens) == plain_find(tokens[:known], num_tokens)


def test_the_longest_match_wins_and_the_latest_of_equals() -> None:
    tokens = [1, 2, 3, 10, 9, 2, 3, 20, 8, 2, 3, 30, 1, 2, 3]
    assert NgramIndex().find(tokens, 1) == ([10], 3)
    assert NgramIndex().find(tokens[1:12] + [7, 2, 3], 1) == ([30], 2)


def test_what_repeats_is_drafted_as_often_as_asked() -> None:
    assert NgramIndex().find([5, 1, 2, 3, 1, 2, 3, 1, 2], 8)[0] == [3, 1, 2, 3, 1, 2, 3, 1]
    assert NgramIndex().find([4, 4, 4], 4)[0] == [4, 4, 4, 4]


def test_nothing_is_found_without_two_tokens_in_common() -> None:
    for tokens in ([1], [1, 1], [1, 2, 3, 1]):
        assert NgramIndex().find(tokens, 4) == ([], 0)


def test_an_index_is_bounded() -> None:
    """A long prompt at once, and one token at a time; the latest half at least is known."""
    tokens = [n * 7919 % 50_000 for n in range(3 * MOST_INDEXED)]
    index = NgramIndex()
    for known in (*range(MOST_INDEXED - 3, MOST_INDEXED + 3), 3 * MOST_INDEXED):
        index.find(tokens[:known], 1)
        assert len(index._earlier) <= MOST_INDEXED and len(index._latest) <= MOST_INDEXED
        recent = tokens[known - MOST_INDEXED // 2 + 10 :][:2]
        assert index.find(tokens[:known] + recent, 2)[0] == tokens[known - MOST_INDEXED // 2 + 12 :][:2]
        index = NgramIndex()
    for known in range(1, 3 * MOST_INDEXED, 97):
        index.find(tokens[:known], 1)
        assert len(index._earlier) <= MOST_INDEXED
