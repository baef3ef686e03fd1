"""A model's tokenizer, from its folder: text to token ids and back, and the names of its special tokens.

The only module that loads `tokenizers` (the Rust library). Calls block; `tokenizer_svc.encoder` keeps long ones off the
event loop. Knows nothing of requests, of streams (see `detokenizer`) or of templates (see `chat_template`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers

from tokenwire.errors import FailedPrecondition, FieldViolation, InvalidRequest
from tokenwire.fingerprint import vocabulary_fingerprint

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""What a client needs to tokenize by itself."""
MAX_KEPT_TEXTS = 65_536
"""Tokens whose own texts are remembered."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """One encoded text."""

    token_ids: list[int]
    offsets: list[tuple[int, int]] | None = None
    """Start and end of each token in the text, in Unicode characters, when asked for."""


class Tokenizer:
    """Thread-safe after loading: nothing changes, and the Rust code drops the interpreter lock while it encodes."""

    def __init__(self, backend: tokenizers.Tokenizer, *, fingerprint: str, special_tokens: dict[str, str]) -> None:
        """Truncation and padding that the file may ask for are switched off: every id of a text is wanted, no other."""
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.fingerprint = fingerprint
        """Of the vocabulary; see `tokenwire.fingerprint`."""
        self.special_tokens = special_tokens
        """Variables of the chat template: "bos_token" → "<s>" and so on; only those the model has."""
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        """Every id is below it."""
        self._before = backend.encode("a", add_special_tokens=False).ids[-1:]
        self.token_text = lru_cache(MAX_KEPT_TEXTS)(self._token_text)
        """A token's own text, by its id; special tokens show their content."""

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tokenizer.json` and its companions; raises FailedPrecondition naming the file that is wrong."""
        path = folder / "tokenizer.json"
        fingerprint = vocabulary_fingerprint(path)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise FailedPrecondition(f"{path}: not a tokenizer ({error})", reason="MODEL_DAMAGED") from None
        return cls(backend, fingerprint=fingerprint, special_tokens=_special_tokens(folder))

    def encode(self, text: str, *, add_special_tokens: bool, offsets: bool = False) -> Encoding:
        """Raises InvalidRequest for a text that is not Unicode."""
        if offsets:
            return self._encoding(_guarded(self.backend.encode, text, add_special_tokens), offsets)
        fast = self.backend.encode_batch_fast  # there is none for a text alone
        return self._encoding(_guarded(fast, [text], add_special_tokens)[0], offsets)

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool, offsets: bool = False) -> list[Encoding]:
        """All at once, on every core; raises InvalidRequest when any is not Unicode."""
        encode = self.backend.encode_batch if offsets else self.backend.encode_batch_fast
        return [self._encoding(found, offsets) for found in _guarded(encode, list(texts), add_special_tokens)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of whole sequences; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        return self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def special_token_texts(self) -> dict[int, str]:
        """What the special tokens look like where they are shown, by id."""
        added = self.backend.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items() if token.special}

    def _token_text(self, token_id: int) -> str:
        """Decoded behind another token, so that decoders which drop a text's leading space leave the token's own."""
        before = self.decode(self._before, skip_special_tokens=False)
        both = self.decode([*self._before, token_id], skip_special_tokens=False)
        return both[len(before) :] if both.startswith(before) else self.decode([token_id], skip_special_tokens=False)

    def check_ids(self, token_ids: Sequence[int], field: str, limit: int | None = None) -> None:
        """Raise InvalidRequest naming the first id outside the vocabulary (or not below `limit` where one is given)."""
        limit = self.vocab_size if limit is None else limit
        if token_ids and max(token_ids) >= limit:
            index = next(i for i, token_id in enumerate(token_ids) if token_id >= limit)
            violation = FieldViolation(
                f"{field}[{index}]", f"{token_ids[index]} is not allowed: a token id below {limit}, the vocabulary size"
            )
            raise InvalidRequest(f"{violation.field}: {violation.description}", violations=[violation])

    @staticmethod
    def _encoding(found: tokenizers.Encoding, offsets: bool) -> Encoding:
        return Encoding(found.ids, found.offsets if offsets else None)


def _guarded(encode: Any, value: Any, add_special_tokens: bool) -> Any:
    """Call the library, with its refusals as ours."""
    try:
        return encode(value, add_special_tokens=add_special_tokens)
    except (UnicodeError, TypeError) as error:
        raise InvalidRequest(
            f"text: not valid Unicode ({error}); lone surrogates cannot be encoded",
            violations=[FieldViolation("text", "must be valid Unicode")],
        ) from None


def _special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens by the names that templates use, from tokenizer_config.json or, older, special_tokens_map.json."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        document = read_json(folder / file)
        for name in SPECIAL_TOKEN_NAMES:
            token = document.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[name] = token
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file; raises FailedPrecondition for anything else."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"{path}: not readable as JSON ({error})", reason="MODEL_DAMAGED") from None
    if not isinstance(document, dict):
        raise FailedPrecondition(f"{path}: not a JSON object", reason="MODEL_DAMAGED")
    return document
