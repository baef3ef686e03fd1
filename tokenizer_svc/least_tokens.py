"""How many tokens a text has at least, told from its size alone, so that nobody encodes what cannot fit anyway.

Byte-level BPE writes every byte of a text that the vocabulary has into some token, and no token holds more bytes than
the longest: a text of n such bytes has at least n / longest tokens. That is claimed only of tokenizers all of whose
parts are known to drop nothing else: the pre-tokenizer splits and removes nothing, no added token swallows the blanks
around it. Unicode's normalisation (NFC and its kin) may write fewer bytes than it reads, but no ASCII character
vanishes in it: what two characters compose to has at most one of ASCII, so there these alone are counted.
Knows the components of a tokenizer by name; encodes nothing.
"""

import json
from collections.abc import Iterator
from typing import Any

import tokenizers

UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}
SPLITTERS = {"ByteLevel", "Digits", "Punctuation", "Split"}
"""Pre-tokenizers that keep every character, where `behavior` does not say that they remove some."""
POST_PROCESSORS = {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"}
"""They only add."""
MAX_CHAR_BYTES = 4
HIGH_BYTES = {*range(0x80, 0xC0), *range(0xC2, 0xF5)}
"""Those that UTF-8 writes other characters than ASCII with."""


class LeastTokens:
    """Of one tokenizer."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Reads the tokenizer's parts; nothing is encoded."""
        normalizers = {part["type"] for part in _parts(backend.normalizer, "normalizers")}
        self._only_ascii = bool(normalizers)
        vocabulary = backend.get_vocab(with_added_tokens=False)
        self._without_token = bytes(byte for char, byte in byte_alphabet().items() if char not in vocabulary)
        """Bytes that such a tokenizer may drop."""
        keeps_all = normalizers <= UNICODE_FORMS and _keeps_its_bytes(backend)
        if normalizers and HIGH_BYTES.intersection(self._without_token):
            keeps_all = False  # what an ASCII character composes to may be dropped
        self.longest_bytes = _longest_bytes(backend) if keeps_all else 0
        """Of the longest token; 0 where a text's size tells nothing."""

    def beyond(self, text: str, most: int) -> int:
        """A number of tokens above `most` that the text has at least; 0 where it is not sure to have that many."""
        longest = self.longest_bytes
        if not longest or len(text) * MAX_CHAR_BYTES <= most * longest:
            return 0
        content = text.encode("ascii", "ignore") if self._only_ascii else text.encode(errors="surrogatepass")
        least = -(-len(content.translate(None, self._without_token)) // longest)
        return least if least > most else 0


def byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable ones for themselves (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _keeps_its_bytes(backend: tokenizers.Tokenizer) -> bool:
    splitters = list(_parts(backend.pre_tokenizer, "pretokenizers"))
    model = backend.model
    return (
        isinstance(model, tokenizers.models.BPE)
        and not (model.continuing_subword_prefix or model.end_of_word_suffix or model.byte_fallback)
        and all(part["type"] in SPLITTERS and part.get("behavior") != "Removed" for part in splitters)
        and any(part["type"] == "ByteLevel" for part in splitters)
        and all(part["type"] in POST_PROCESSORS for part in _parts(backend.post_processor, "processors"))
        and not any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values())
    )


def _longest_bytes(backend: tokenizers.Tokenizer) -> int:
    """A byte-level vocabulary has a character for each byte; added tokens are found as they stand or normalised."""
    sizes = [len(text) for text in backend.get_vocab(with_added_tokens=False)]
    for token in backend.get_added_tokens_decoder().values():
        sizes.append(len(token.content.encode()))
        if backend.normalizer is not None:
            sizes.append(len(backend.normalizer.normalize_str(token.content).encode()))
    return max(sizes, default=0)


def _parts(component: Any, inner: str) -> Iterator[dict[str, Any]]:
    """What a component is made of, sequences unrolled. `inner`: what a sequence calls its parts."""
    waiting = [] if component is None else [json.loads(component.__getstate__())]
    while waiting:
        state = waiting.pop()
        if state["type"] == "Sequence":
            waiting += state[inner]
        else:
            yield state
