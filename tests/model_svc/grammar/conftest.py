from collections.abc import Callable
from functools import cache

import pytest
import tokenizers

from model_svc.grammar.vocabulary import Vocabulary, load_vocabulary, vocabulary_of
from tests.fakes.tokenizers_trained import TRAINED

Trained = tuple[tokenizers.Tokenizer, Vocabulary]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """A trained tokenizer, by its name, and its vocabulary for logits that are seven entries wider."""

    @cache
    def load(name: str) -> Trained:
        folder = tmp_path_factory.mktemp(name)
        tokenizer = TRAINED[name]()
        tokenizer.save(str(folder / "tokenizer.json"))
        return tokenizer, load_vocabulary(folder, tokenizer.get_vocab_size() + 7)

    return load


@pytest.fixture(scope="session")
def letters() -> Vocabulary:
    """A token for each ASCII character, of the same number; "true" is 128, "ab" 129, and 130 a special token."""
    tokens = {code: bytes([code]) for code in range(128)} | {128: b"true", 129: b"ab", 130: b"<stop>"}
    return vocabulary_of(tokens, {"<stop>": 130}, 132)
