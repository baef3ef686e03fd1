"""A model's tokenizer, from its folder: text to token ids and back, and the names of its special tokens.

The only module that loads `tokenizers` (the Rust library). Calls block; `tokenizer_svc.encoder` keeps long ones off the
event loop. Knows nothing of requests, of streams (see `detokenizer`) or of templates (see `chat_template`).
"""

import json
import re
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers

from tokenizer_svc.boundaries import Boundaries, affixes, decoder_kinds
from tokenizer_svc.least_tokens import LeastTokens, byte_alphabet
from tokenwire.cutting import cut
from tokenwire.errors import FailedPrecondition, FieldViolation, Internal, InvalidRequest
from tokenwire.fingerprint import vocabulary_fingerprint
from tokenwire.tokenizer_folder import check_tokenizer

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_KEPT_TEXTS = 65_536
"""Tokens whose own texts are remembered."""
PANIC = "PanicException"
"""What a Rust library raises for a bug of its own; no `Exception`, and of a module that cannot be imported."""
PLAIN_GUARD = "\ufdd0\ufdd1"
"""Stands for a boundary where special tokens are read as text. No character: Unicode will never assign these."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_ALPHABET = byte_alphabet()
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


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
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        """Every id is below it."""
        self.unused_ids = frozenset(range(self.vocab_size)).difference(vocabulary.values())
        """Ids below `vocab_size` that no token has."""
        self.special_texts = {
            i: token.content for i, token in backend.get_added_tokens_decoder().items() if token.special
        }
        """Of each special token, by its id."""
        self.special_ids = frozenset(self.special_texts)
        kinds = decoder_kinds(backend)
        self.byte_of = _byte_tokens(vocabulary) if "ByteFallback" in kinds else {}
        """The byte that each token of byte fallback stands for, by its id; empty without byte fallback."""
        self.own_texts = _own_texts(backend, self.vocab_size) if kinds == {"ByteLevel"} else None
        """By id: a token's text, empty where its bytes are not whole characters. None where it depends on others."""
        self.plain_texts = _without(self.own_texts, self.special_ids) if self.own_texts is not None else None
        """The same where special tokens are left out: empty for these too."""
        self.boundaries = Boundaries(backend)
        self.least_tokens = LeastTokens(backend)
        self.affixes = affixes(backend)
        """Ids that come before and behind a text's own; None where they depend on the text."""
        self.begin_id = backend.token_to_id(special_tokens.get("bos_token", ""))
        """The begin-of-sequence token; None where there is none."""
        contents = sorted(filter(None, self.special_texts.values()), key=len, reverse=True)
        self.special_pattern = re.compile("|".join(map(re.escape, contents))) if contents else None
        """Finds what stands for special tokens in a text; None where there are no special tokens."""
        self._plain: tokenizers.Tokenizer | None = None
        self._plain_lock = threading.Lock()
        self.neutral_ids = backend.encode("a", add_special_tokens=False).ids[-1:]
        """An ordinary token, for another to be decoded behind."""
        self.token_text = lru_cache(MAX_KEPT_TEXTS)(self._token_text)
        """A token's own text, by its id; special tokens show their content."""

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read `tokenizer.json` and its companions; raises FailedPrecondition naming the file that is wrong."""
        check_tokenizer(folder)
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

    def encode_batch(
        self,
        texts: Sequence[str],
        *,
        add_special_tokens: bool,
        offsets: bool = False,
        split_special_tokens: bool = False,
    ) -> list[Encoding]:
        """All at once, on every core; raises InvalidRequest when any is not Unicode."""
        backend = self._plain_backend(texts) if split_special_tokens else self.backend
        encode = backend.encode_batch if offsets else backend.encode_batch_fast
        return [self._encoding(found, offsets) for found in _guarded(encode, list(texts), add_special_tokens)]

    def count_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool, split_special_tokens: bool = False
    ) -> list[int]:
        """How many tokens each has. As `encode_batch`, without making objects of ids, which holds up other threads."""
        backend = self._plain_backend(texts) if split_special_tokens else self.backend
        return [len(found) for found in _guarded(backend.encode_batch_fast, list(texts), add_special_tokens)]

    def encode_plain(self, text: str, *, add_special_tokens: bool = False, behind_boundary: bool = False) -> list[int]:
        """The ids of a text in which what stands for special tokens is plain text.

        `behind_boundary`: as a part that does not stand at the start of its text. The first call takes as long as
        loading.

        Raises InvalidRequest.
        """
        encode = self._plain_backend([text]).encode
        if behind_boundary:
            found = _guarded(encode, PLAIN_GUARD + text, add_special_tokens).ids[1:]
        else:
            found = _guarded(encode, text, add_special_tokens).ids
        return list(found)

    def _plain_backend(self, texts: Sequence[str]) -> tokenizers.Tokenizer:
        """A second tokenizer, made when it is first needed: the library's own switch would change the first for all."""
        if any(PLAIN_GUARD in text for text in texts):
            description = "U+FDD0 followed by U+FDD1 is not allowed with split_special_tokens"
            raise InvalidRequest.of("text", description)
        with self._plain_lock:
            if self._plain is None:
                plain = _without_special_pieces(self.backend)
                plain.add_tokens([tokenizers.AddedToken(PLAIN_GUARD, normalized=False, special=False)])
                plain.encode_special_tokens = True
                self._plain = plain
            return self._plain

    def refuse_other_special_tokens(self, text: str, marked: Collection[int]) -> None:
        """Raise FailedPrecondition when the text has special tokens that begin at other places than these."""
        found = self.special_pattern.finditer(text) if self.special_pattern is not None else ()
        for match in found:
            if match.start() not in marked:
                raise FailedPrecondition(
                    f"split_special_tokens: this model's chat template puts {match[0]!r} next to the client's text and "
                    "its tokenizer cannot tell the two apart; take the special tokens out of the conversation",
                    reason="SPECIAL_TOKENS_NOT_SEPARABLE",
                )

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of whole sequences; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        return self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def _token_text(self, token_id: int) -> str:
        """Decoded behind another token, so that decoders which drop a text's leading space leave the token's own."""
        before = self.decode(self.neutral_ids, skip_special_tokens=False)
        both = self.decode([*self.neutral_ids, token_id], skip_special_tokens=False)
        return both[len(before) :] if both.startswith(before) else self.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """What a byte-level decoder writes for a token: a byte for each character, or a text as it stands."""
        text = self.backend.id_to_token(token_id) or ""
        try:
            return bytes(map(BYTE_ALPHABET.__getitem__, text))
        except KeyError:
            return text.encode()

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


def _own_texts(backend: tokenizers.Tokenizer, vocab_size: int) -> list[str]:
    """For byte-level decoders, which write the tokens' bytes one behind the other. Some 0.1 s for 100,000 tokens."""
    texts = backend.decode_batch([(token_id,) for token_id in range(vocab_size)], skip_special_tokens=False)
    return ["" if REPLACEMENT in text else text for text in texts]


def _without(texts: Sequence[str], left_out: Collection[int]) -> list[str]:
    return ["" if token_id in left_out else text for token_id, text in enumerate(texts)]


def _guarded(encode: Any, value: Any, add_special_tokens: bool) -> Any:
    """Call the library, with its refusals as ours."""
    try:
        return encode(value, add_special_tokens=add_special_tokens)
    except (UnicodeError, TypeError) as error:
        raise InvalidRequest(
            f"text: not valid Unicode ({error}); lone surrogates cannot be encoded",
            violations=[FieldViolation("text", "must be valid Unicode")],
        ) from None
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise Internal(f"the tokenizer failed: {cut(str(error))}") from None


def _without_special_pieces(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy of which the model cannot make special tokens out of their text either, as that of a Unigram can.

    Their pieces keep their places under names that no text has.
    """
    document = json.loads(backend.to_str())
    model = document["model"]
    special = {token["content"] for token in document["added_tokens"] if token["special"]}
    if model["type"] == "Unigram":
        unknown = model["unk_id"]
        model["vocab"] = [
            [f"{PLAIN_GUARD}{i}", score] if piece in special and i != unknown else [piece, score]
            for i, (piece, score) in enumerate(model["vocab"])
        ]
    elif model["type"] == "WordLevel":
        unknown = model["unk_token"]
        model["vocab"] = {
            f"{PLAIN_GUARD}{i}" if word in special and word != unknown else word: i
            for word, i in model["vocab"].items()
        }
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def _byte_tokens(vocabulary: dict[str, int]) -> dict[int, int]:
    found = {}
    for text, token_id in vocabulary.items():
        if match := BYTE_TOKEN.fullmatch(text):
            found[token_id] = int(match[1], 16)
    return found


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
    except (OSError, ValueError, RecursionError) as error:
        raise FailedPrecondition(f"{path}: not readable as JSON ({error})", reason="MODEL_DAMAGED") from None
    if not isinstance(document, dict):
        raise FailedPrecondition(f"{path}: not a JSON object", reason="MODEL_DAMAGED")
    return document
