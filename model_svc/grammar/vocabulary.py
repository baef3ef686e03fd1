"""A model's vocabulary as the bytes that each token adds to a text: what a grammar is matched against.

Read from tokenizer.json as it stands, without a tokenizer: of the file only the pieces and the decoder's steps count.
Beyond the model's own ids stands one more, which is no token of it: where that may come, the text may end. What ends a
sequence then is for the request to say (see `matching`). Knows nothing of grammars. Where the grammar library,
llguidance, is not installed an engine serves all but constrained outputs: there is no vocabulary then.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenwire.errors import FailedPrecondition

if HAS_LIBRARY := find_spec("llguidance") is not None:
    from llguidance import LLTokenizer

BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
PASSED_OVER = frozenset({"Fuse", "Strip"})
"""Decoder steps that leave a token inside a text as it is: Strip takes a space from a text's beginning."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Made once per process; threads may share it."""

    size: int
    """The logits' width. Ids that the tokenizer does not have are tokens without bytes, which no grammar allows."""
    tokenizer: "LLTokenizer"
    special: Mapping[str, int] = field(default_factory=dict)
    """Special tokens' ids by what the tokenizer calls them."""

    @property
    def end_id(self) -> int:
        """The id behind the last: not a token, but "the text may end here"."""
        return self.size

    @property
    def mask_bytes(self) -> int:
        """Bytes of one row of bits, one bit per id and the end's, in whole 32-bit words."""
        return (self.size + 1 + 31) // 32 * 4

    def longest_tokens(self, text: bytes) -> list[int]:
        """The text as tokens, each the longest that fits; a character that is cut off at the end is left out."""
        return self.tokenizer.greedy_tokenize(text.decode(errors="ignore")) if text else []


def load_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read `folder`'s tokenizer.json for a model whose logits have `size` entries.

    Holds the interpreter lock: about 0.15 s for 49,000 tokens, see docs/structured-output.md. Raises FailedPrecondition
    where there is none, or one whose tokens have no bytes of their own, and without the grammar library.
    """
    if not HAS_LIBRARY:
        raise refusal("llguidance, which reads grammars, is not installed here (pip install 'tokenwire[model]')")
    path = folder / "tokenizer.json"
    try:
        document = json.loads(path.read_bytes())
        pieces, special_ids = pieces_of(document)
        bytes_of = decoder_of(document.get("decoder"))
    except FileNotFoundError:
        raise refusal(
            "the model's folder has no tokenizer.json, so nobody can say which text its tokens make"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise refusal(f"the model's tokenizer.json cannot be read: {error}") from None
    tokens = {token_id: bytes_of(piece) for token_id, piece in pieces.items()}
    return vocabulary_of(tokens, {pieces[token_id]: token_id for token_id in special_ids}, size)


def vocabulary_of(tokens: Mapping[int, bytes], special: Mapping[str, int], size: int) -> Vocabulary:
    """A vocabulary of these tokens, of which the special ones, by name, are no text."""
    table = [tokens.get(token_id, b"") for token_id in range(size)]
    special = {name: token_id for name, token_id in special.items() if token_id < size}
    ids = [*sorted(special.values()), size]
    return Vocabulary(size, LLTokenizer(_Table([*table, b"<end of text>"], ids, size)), special)  # type: ignore[arg-type]


def refusal(why: str) -> FailedPrecondition:
    """Why this model's outputs cannot be constrained."""
    return FailedPrecondition(f"options.constraint: {why}; leave the constraint out", reason="CONSTRAINTS_UNAVAILABLE")


class _Table:
    """The shape in which the library takes a vocabulary."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special_token_ids: list[int], eos_token_id: int) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id = tokens, special_token_ids, eos_token_id

    def __call__(self, text: str | bytes) -> list[int]:
        """The library asks how a text that is forced would be tokenized; it then does so greedily itself."""
        return []


def pieces_of(document: Mapping[str, Any]) -> tuple[dict[int, str], set[int]]:
    """Every token's piece by its id, and the ids of special tokens. Raises KeyError, TypeError, ValueError."""
    vocabulary = document["model"]["vocab"]
    if isinstance(vocabulary, dict):
        pieces = {int(token_id): str(piece) for piece, token_id in vocabulary.items()}
    else:
        pieces = {token_id: str(piece) for token_id, (piece, _) in enumerate(vocabulary)}
    special = set()
    for token in document.get("added_tokens") or ():
        pieces[int(token["id"])] = str(token["content"])
        if token["special"]:
            special.add(int(token["id"]))
    return pieces, special


def decoder_of(decoder: Mapping[str, Any] | None) -> Callable[[str], bytes]:
    """What makes a token's bytes of its piece. Raises FailedPrecondition for decoders that look at its neighbours."""
    steps = list(_steps(decoder or {"type": "none"}))
    kinds = {step["type"] for step in steps} - PASSED_OVER
    if kinds == {"ByteLevel"}:
        return byte_level
    if kinds and kinds <= {"ByteFallback", "Metaspace", "Replace"}:
        replaced: list[tuple[str, str]] = []
        for step in steps:
            if step["type"] == "Metaspace":
                replaced.append((step["replacement"], " "))
            elif step["type"] == "Replace":
                replaced.append((step["pattern"]["String"], step["content"]))
        return _Replacing(replaced, byte_fallback="ByteFallback" in kinds)
    named = ", ".join(sorted(kinds - {"none"})) or "none"
    raise refusal(
        f"the decoder of the model's tokenizer ({named}) does not give each token a text of its own; "
        "byte-level, byte-fallback and Metaspace decoders do"
    )


def _steps(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _byte_characters() -> dict[int, int]:
    """By code point: the byte that a byte-level vocabulary writes as this character (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: byte for byte in shown} | {0x100 + index: byte for index, byte in enumerate(hidden)}


BYTE_CHARACTERS = _byte_characters()


def byte_level(piece: str) -> bytes:
    """A piece whose characters each stand for a byte; any other, as an added token may be, is its own text."""
    try:
        return bytes([BYTE_CHARACTERS[ord(character)] for character in piece])
    except KeyError:
        return piece.encode()


class _Replacing:
    """Pieces that are text but for some characters, and for byte tokens."""

    def __init__(self, replaced: list[tuple[str, str]], *, byte_fallback: bool) -> None:
        self._replaced = replaced
        self._byte_fallback = byte_fallback

    def __call__(self, piece: str) -> bytes:
        if self._byte_fallback and (match := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        for old, new in self._replaced:
            piece = piece.replace(old, new)
        return piece.encode()
