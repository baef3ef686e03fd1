"""llguidance as the model tier uses it."""

import json
from pathlib import Path

import numpy as np

from model_svc.grammar.compiler import verdict_on
from model_svc.grammar.library import new_matcher
from model_svc.grammar.vocabulary import load_vocabulary
from tokenwire.constraints import Constraint, ConstraintForm


class Library:
    """Of one model folder."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.vocabulary = load_vocabulary(folder, vocab_size)
        self.bits = np.zeros(self.vocabulary.mask_bytes, dtype=np.uint8)

    def compile(self, form: str, text: str) -> "Matcher | None":
        """None where it is refused. With what the model tier does besides: checks, and a trial of some tokens."""
        verdict = verdict_on(Constraint(ConstraintForm(form), text), self.vocabulary)[0]
        return None if verdict.error is not None else Matcher(self, verdict.grammar)

    def accepts(self, matcher: "Matcher", instance: object) -> bool:
        """Whether a JSON value's text is in the language."""
        ids = self.vocabulary.tokenizer.greedy_tokenize(json.dumps(instance, ensure_ascii=False))
        fresh = matcher.first.deep_copy()
        return fresh.try_consume_tokens(ids) == len(ids) and fresh.is_accepting()


class Matcher:
    """One sequence's."""

    def __init__(self, library: Library, grammar: str) -> None:
        self.library = library
        self.first = new_matcher(library.vocabulary, grammar)
        self.restart()

    def restart(self) -> None:
        """Another sequence of the same form."""
        self.matcher = self.first.deep_copy()

    def mask(self) -> np.ndarray:
        """[V] bool."""
        bits = self.library.bits
        self.matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        return bits

    def tokens(self) -> np.ndarray:
        """Ids that may come, of the last mask."""
        found = np.unpackbits(self.library.bits, count=self.library.vocabulary.size, bitorder="little")
        return np.flatnonzero(found)

    def accept(self, token_id: int) -> None:
        self.matcher.consume_token(token_id)
