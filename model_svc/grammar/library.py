"""The grammar library, llguidance, under this project's limits: whatever a client sends, work and memory are bounded.

Knows how a matcher is made and how the library's messages read. Does not know where grammars come from. Loads without
the library: see `vocabulary`.
"""

from importlib.util import find_spec

from model_svc.grammar.vocabulary import Vocabulary

if find_spec("llguidance"):
    from llguidance import LLMatcher, LLParserLimits

    LIMITS = LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=250_000,
        verbose_errors=False,
    )
    """The library's own measure of work; about 15,000 to 50,000 units a millisecond, and 2 KB a state."""

MAX_MASK_S = 0.25
"""Processor time of one token's mask beyond which it is slow: what the limits above do not count, such as repeats
within repeats."""
MAX_SLOW_MASKS = 2
"""A sequence ends with the next one: on a busy machine the clock may have jumped once, or twice."""


def new_matcher(vocabulary: Vocabulary, grammar: str) -> "LLMatcher":
    """A matcher at the beginning of a text. Never raises: ask `is_error`. Releases the interpreter lock."""
    return LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=LIMITS)


def reason_of(message: str) -> str:
    """The library's message in one line, without what it shows of its own state."""
    text = message.split("<non-verbose/>")[0].split("<state>")[0]
    return " ".join(line.strip() for line in text.splitlines() if line.strip())[:400]
