"""Where a text may be cut so that its parts, encoded one by one, are the ids of the whole.

`tokenizers` first cuts a text at the added tokens it finds in it, then normalises, splits and encodes each part by
itself; the one thing a part is told of the rest is whether it stands at the start of the text (Metaspace with
`prepend_scheme: first`). So behind an added token, and before the next one, is such a place, provided that

- every component of the tokenizer is of a kind known to look at nothing but its part;
- whether the token is found there depends on nothing behind it: no other added token contains its text, it does not
  swallow blanks around it (`lstrip`, `rstrip`), is no `single_word`, and is not found after normalisation only;
- it neither begins nor ends with a letter, a digit, "_" or a blank, so that other tokens' `single_word`, `lstrip` and
  `rstrip` come to the same whether they see it or the end of the text.

A part that does not stand at the start is encoded behind such a token, whose id is then dropped. What cannot be proved
by these rules has no boundaries: it is encoded whole. Knows the components of a tokenizer by name, and no text.
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import tokenizers

NORMALIZERS = {
    "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend",
    "Replace", "Sequence", "Strip", "StripAccents",
}  # fmt: skip
PRE_TOKENIZERS = {
    "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace", "Punctuation",
    "Sequence", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit",
}  # fmt: skip
POST_PROCESSORS = {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"}
MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text: an added token that was found in it, or what stands between two of them."""

    text: str
    start: int
    """In the text, in characters."""
    token_id: int | None = None
    """Of the added token."""


class Boundaries:
    """Those of one tokenizer."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Reads the tokenizer's parts; nothing is encoded."""
        found = {token.content: token_id for token_id, token in _added_tokens(backend) if not token.normalized}
        self._ids = {}
        if all(
            [
                type(backend.model).__name__ in MODELS and not getattr(backend.model, "dropout", None),
                _kinds(backend.normalizer) <= NORMALIZERS,
                _kinds(backend.pre_tokenizer) <= PRE_TOKENIZERS,
                _kinds(backend.post_processor) <= POST_PROCESSORS,
            ]
        ):
            flags = {token.content: token for _, token in _added_tokens(backend)}
            self._ids = {
                text: token_id for text, token_id in found.items() if _is_boundary(text, flags[text], found.keys())
            }
        longest_first = sorted(found, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first))) if self._ids else None
        self.guard = min(self._ids, key=len, default="")
        """A boundary's text, to encode another part behind; empty where there are no boundaries."""
        self.guard_id = self._ids.get(self.guard, -1)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self._any is not None

    def parts(self, text: str, plain: Collection[int] = ()) -> Iterator[Part]:
        """The text's parts in order, none empty. What begins at a place in `plain` is not taken for an added token."""
        begin = 0
        if self._any is not None:
            for match in self._any.finditer(text):
                token_id = self._ids.get(match[0])
                if token_id is None or match.start() in plain:
                    continue
                if begin < match.start():
                    yield Part(text[begin : match.start()], begin)
                yield Part(match[0], match.start(), token_id)
                begin = match.end()
        if begin < len(text):
            yield Part(text[begin:], begin)


def affixes(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]] | None:
    """What the post-processor puts before and behind the ids of one text; None where that cannot be told."""
    if not _kinds(backend.post_processor) <= POST_PROCESSORS:
        return None
    found: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for text in ("a", "b c", "d"):
        plain = backend.encode(text, add_special_tokens=False).ids
        whole = backend.encode(text, add_special_tokens=True).ids
        places = [i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain]
        if not plain or len(places) != 1:
            return None
        found.add((tuple(whole[: places[0]]), tuple(whole[places[0] + len(plain) :])))
    if len(found) != 1:
        return None
    before, behind = found.pop()
    return list(before), list(behind)


def _added_tokens(backend: tokenizers.Tokenizer) -> list[tuple[int, tokenizers.AddedToken]]:
    return [(token_id, token) for token_id, token in backend.get_added_tokens_decoder().items() if token.content]


def _is_boundary(text: str, token: tokenizers.AddedToken, others: Collection[str]) -> bool:
    edges = text[0] + text[-1]
    return (
        not (token.lstrip or token.rstrip or token.single_word)
        and not any(char.isalnum() or char == "_" or char.isspace() for char in edges)
        and not any(text in other for other in others if other != text)
    )


def _kinds(component: Any) -> set[str]:
    """The types of a component and of all that it is made of."""
    if component is None:
        return set()
    return _types(json.loads(component.__getstate__()))


def _types(state: Any) -> set[str]:
    if isinstance(state, list):
        return set().union(*map(_types, state))
    if not isinstance(state, dict):
        return set()
    own = {state["type"]} if isinstance(state.get("type"), str) else set()
    inner = [state.get(key) for key in ("normalizers", "pretokenizers", "processors", "decoders")]
    return own | set().union(*(_types(part) for part in inner))


def decoder_kinds(backend: tokenizers.Tokenizer) -> set[str]:
    """The kinds of decoder that a tokenizer's decoder is made of."""
    return _kinds(backend.decoder)
