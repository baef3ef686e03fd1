from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.logprobs import logprobs_of
from tests.fakes.tokenizers_trained import byte_level_bpe
from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.generation import ChoiceText
from tokenizer_svc.logprob_texts import LogprobTexts
from tokenizer_svc.stop_strings import StopStringMatcher
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import Internal, Unavailable
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.requests import FinishReason, ModelTimings, Terminal, Usage


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer(byte_level_bpe(), fingerprint="", special_tokens={})


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False).token_ids


def choice(*stop_strings: str, include: bool = False, min_tokens: int = 0, logprobs: bool = False) -> ChoiceText:
    matcher = StopStringMatcher(stop_strings, include_stop_string=include) if stop_strings else None
    texts = LogprobTexts(tokenizer(), [0], every_token=True) if logprobs else None
    return ChoiceText(Detokenizer(tokenizer()), matcher, 5, min_tokens=min_tokens, logprob_texts=texts)


def letters(text: str) -> list[int]:
    """One token per character."""
    return [tokenizer().backend.token_to_id(letter) for letter in text]


def test_without_stop_strings_the_model_tiers_end_is_the_end() -> None:
    text = choice()
    ids = ids_of("some text")
    delta = text.push(ids)
    assert (delta.text, delta.num_tokens, delta.stopped) == ("some text", len(ids), False)
    below = Terminal(FinishReason.STOP_TOKEN, Usage(5, 2, len(ids)), stop_token_id=3)
    assert text.finish(below) == ("", below)


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.STOP_TOKEN, FinishReason.CANCELLED])
def test_a_stop_string_outranks_whatever_comes_later(reason: FinishReason) -> None:
    text = choice("STOP")
    ids = ids_of("yes STOP and more")
    delta = text.push(ids)
    through = next(n for n in range(len(ids)) if "STOP" in tokenizer().decode(ids[:n], skip_special_tokens=True))
    assert (delta.text, delta.num_tokens, delta.stopped) == ("yes ", through, True)
    timings = ModelTimings(1, 2, 3)
    rest, terminal = text.finish(Terminal(reason, Usage(5, 4, len(ids)), model_timings=timings))
    assert rest == ""
    assert terminal == Terminal(
        FinishReason.STOP_STRING, Usage(5, 4, through), stop_string="STOP", model_timings=timings
    )


def test_held_back_text_is_given_out_at_any_other_end() -> None:
    text = choice("STOP")
    assert text.push(ids_of("yes ST")).text == "yes "
    assert text.end(FinishReason.DEADLINE) == ("ST", Terminal(FinishReason.DEADLINE, Usage(5, 0, text.num_tokens)))
    error = Unavailable("lost")
    text = choice("STOP")
    text.push(ids_of("ST"))
    rest, terminal = text.end(FinishReason.ERROR, error)
    assert (rest, terminal.error) == ("ST", error)


def test_bytes_at_the_end_can_complete_a_stop_string() -> None:
    text = choice("\ufffd")
    text.push([tokenizer().backend.token_to_id("a"), tokenizer().backend.token_to_id("â")])
    rest, terminal = text.finish(Terminal(FinishReason.LENGTH, Usage(5, 0, 2)))
    assert (rest, terminal.reason, terminal.usage.completion_tokens) == ("", FinishReason.STOP_STRING, 2)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abS TOP é😀", max_size=30),
    cuts=st.lists(st.integers(1, 4), min_size=30, max_size=30),
    include=st.booleans(),
)
def test_the_result_does_not_depend_on_how_tokens_are_grouped(text: str, cuts: list[int], include: bool) -> None:
    def run(groups: list[list[int]]) -> tuple[str, Terminal]:
        state = choice("STOP", "é", " a", include=include)
        out = ""
        for group in groups:
            delta = state.push(group)
            out += delta.text
            if delta.stopped:
                break
        rest, terminal = state.finish(Terminal(FinishReason.LENGTH, Usage(5, 0, sum(map(len, groups)))))
        return out + rest, terminal

    ids = ids_of(text)
    grouped, position = [], 0
    for size in cuts:
        if position < len(ids):
            grouped.append(ids[position : position + size])
            position += size
    if position < len(ids):
        grouped.append(ids[position:])
    assert run(grouped) == run([[token_id] for token_id in ids])


@pytest.mark.parametrize(
    ("min_tokens", "text", "num_tokens"),
    [
        (0, "ab", 5),
        (2, "ab", 5),  # begins with the first token behind them
        (3, "abENDxy", 10),  # begins within the first 3
        (4, "abENDxy", 10),
        (5, "abENDxy", 10),  # complete within the first 5, that is, before anything is looked for
        (7, "abENDxy", 10),
        (8, "abENDxyENDz", 11),
        (99, "abENDxyENDz", 11),
    ],
)
def test_no_stop_string_begins_within_the_first_tokens(min_tokens: int, text: str, num_tokens: int) -> None:
    ids = letters("abENDxyENDz")
    for size in (1, 4, len(ids)):
        state = choice("END", min_tokens=min_tokens)
        out, end = "", 0
        while end < len(ids) and state.stop_string is None:
            out += state.push(ids[end : end + size]).text
            end += size
        rest, terminal = state.finish(Terminal(FinishReason.LENGTH, Usage(5, 0, len(ids))))
        assert (out + rest, state.num_tokens) == (text, num_tokens)
        assert terminal.reason is (FinishReason.STOP_STRING if num_tokens < len(ids) else FinishReason.LENGTH)


def test_a_character_completed_behind_the_first_tokens_counts_as_behind_them() -> None:
    ids = ids_of("\N{FOX FACE}")
    state = choice("\N{FOX FACE}", min_tokens=len(ids) - 1)
    assert state.push(ids).stopped
    state = choice("\N{FOX FACE}", min_tokens=len(ids))
    assert state.push(ids).text == "\N{FOX FACE}" and state.stop_string is None


def test_bytes_at_the_end_of_the_first_tokens_complete_no_stop_string() -> None:
    text = choice("\ufffd", min_tokens=2)
    text.push(letters("aâ"))
    assert text.finish(Terminal(FinishReason.LENGTH, Usage(5, 0, 2)))[0] == "\ufffd"


@settings(max_examples=200, deadline=None)
@given(text=st.text("abS TOP é😀", max_size=30), size=st.integers(1, 7), include=st.booleans())
def test_every_token_has_one_log_probability_however_text_is_held_back(text: str, size: int, include: bool) -> None:
    ids = ids_of(text)
    plain, state = choice("STOP", "é", include=include), choice("STOP", "é", include=include, logprobs=True)
    for begin in range(0, len(ids), size):
        group = ids[begin : begin + size]
        expected = plain.push(group)
        delta = state.push(group, SequenceLogprobs(logprobs_of(group, 2)))
        assert (delta.text, delta.num_tokens, delta.stopped) == (expected.text, expected.num_tokens, expected.stopped)
        assert delta.logprobs is not None
        assert [t.token_id for t in delta.logprobs.tokens] == group[: delta.num_tokens]
        if delta.stopped:
            break
    below = Terminal(FinishReason.LENGTH, Usage(5, 0, len(ids)))
    assert state.finish(below) == plain.finish(below)


def test_a_token_without_its_log_probability_is_an_error() -> None:
    for given_ids in ([], [1], [1, 2, 3]):
        with pytest.raises(Internal, match=f"{len(given_ids)} log-probabilities came for 2 tokens"):
            choice(logprobs=True).push([1, 2], SequenceLogprobs(logprobs_of(given_ids, 0)))
