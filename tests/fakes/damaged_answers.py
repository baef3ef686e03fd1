"""Answers of models with something wrong in them, and the ways of reading them, for tests of properties."""

from hypothesis import strategies as st

from tests.fakes.answer_texts import CASES
from tokenizer_svc.parsers.families import TOOL_FORMATS

MORSELS = [
    "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<think>", "</think>",
    "<|python_start|>", "<|python_end|>", '{"name": "f", "arguments": ', '{"name": "f", "parameters": {', '"name"',
    "f{", '[{"name": "f", "parameters": {', '}, {"name": "now", "arguments": ', '"description"',
    "f(", "now(", "a=", "[f(a=", "{", "}", "[", "]", "(", ")", "\"", "'", "'''", "\\", ",", ";", ":", "=", " ", "\n",
    "null", "1e999", "f", "é", "\\ud800", "\\u0041", "b'x'", "lambda: 0", "#", "\x00", "{}",
]  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn) -> str:
    """An answer with a few things deleted, doubled or put where they do not belong; or nothing but morsels."""
    text = draw(st.sampled_from([case.text for case in CASES] + [""] * 8))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 9)))
        put = draw(st.one_of(st.sampled_from(MORSELS), st.just(""), st.text(max_size=3)))
        text = text[:start] + put + text[draw(st.sampled_from([start, end])) :]
    return text + "".join(draw(st.lists(st.sampled_from(MORSELS), max_size=12)))


@st.composite
def options(draw: st.DrawFn) -> dict:
    some = frozenset({"<tool_call>", "</tool_call>", "[TOOL_CALLS]", "</think>"})
    hidden = draw(st.sampled_from([frozenset(), some]))
    return {
        "tools": draw(st.sampled_from(["", *TOOL_FORMATS])),
        "reasoning": (reasoning := draw(st.sampled_from(["", "think", "mistral"]))),
        "begins_inside": bool(reasoning) and draw(st.booleans()),
        "hidden": hidden,
    }
