"""xgrammar by its documented interface. Imports torch, as the library does."""

import json
from pathlib import Path

import numpy as np
import xgrammar
from transformers import AutoTokenizer


class Library:
    """Of one model folder."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        info = xgrammar.TokenizerInfo.from_huggingface(self.tokenizer, vocab_size=vocab_size)
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.vocab_size = vocab_size
        self.bits = xgrammar.allocate_token_bitmask(1, vocab_size)

    def compile(self, form: str, text: str) -> "Matcher | None":
        """None where it is refused."""
        compile = {
            "json_schema": self.compiler.compile_json_schema,
            "regex": self.compiler.compile_regex,
            "ebnf": self.compiler.compile_grammar,
        }[form]
        try:
            return Matcher(self, compile(text))
        except Exception:  # what it raises is not documented
            return None

    def accepts(self, matcher: "Matcher", instance: object) -> bool:
        """Whether a JSON value's text is in the language."""
        fresh = xgrammar.GrammarMatcher(matcher.compiled)
        return fresh.accept_string(json.dumps(instance, ensure_ascii=False)) and fresh.is_completed()


class Matcher:
    """One sequence's."""

    def __init__(self, library: Library, compiled: xgrammar.CompiledGrammar) -> None:
        self.library, self.compiled = library, compiled
        self.restart()

    def restart(self) -> None:
        """Another sequence of the same form."""
        self.matcher = xgrammar.GrammarMatcher(self.compiled, terminate_without_stop_token=True)

    def mask(self) -> np.ndarray:
        """[V] bits."""
        self.matcher.fill_next_token_bitmask(self.library.bits)
        return self.library.bits.numpy()

    def tokens(self) -> np.ndarray:
        """Ids that may come, of the last mask."""
        bits = self.library.bits.numpy().view(np.uint8)[0]
        found = np.flatnonzero(np.unpackbits(bits, count=self.library.vocab_size, bitorder="little"))
        return found[~np.isin(found, self.matcher.stop_token_ids)]

    def accept(self, token_id: int) -> None:
        self.matcher.accept_token(token_id)
