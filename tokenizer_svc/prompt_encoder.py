"""Prompts to token ids, part by part, so that each part is encoded once as long as it is remembered.

A part is a system prompt, the tools, a turn: what stands between two boundaries (see `boundaries`). Calls block.
Thread-safe. Knows neither templates nor requests.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tokenizer_svc.encoding_cache import EncodingCache, Key
from tokenizer_svc.tokenizer import Tokenizer

WHOLE, FIRST, LATER, PLAIN_WHOLE, PLAIN_FIRST, PLAIN_LATER, SHORT = range(7)
"""How a part is encoded: with the tokenizer's own special tokens around it, at the start of its text, behind a
boundary; the same with what stands for special tokens read as plain text; whole, but not remembered."""
SHORT_CHARS = 200
"""Texts up to this size that are no conversation are not remembered: new ones would pay more than known ones save."""
ONE_BY_ONE_CHARS = 1_000
"""Up to this many characters in all, several parts are encoded one by one: the threads of a batch cost more."""


class CacheOutcome(Enum):
    """What the cache gave for a prompt."""

    HIT = "hit"
    PART = "part"
    MISS = "miss"


@dataclass(frozen=True, slots=True)
class PromptText:
    """A text to encode."""

    text: str
    add_special_tokens: bool
    split_special_tokens: bool = False
    """Read what stands for special tokens as plain text."""
    plain: Collection[int] = ()
    """The same for what begins at these places alone."""
    salt: str = ""
    """Ids are remembered for texts of equal salt."""


@dataclass(slots=True)
class PromptIds:
    """Its token ids."""

    token_ids: list[int] = field(default_factory=list)
    num_cached: int = 0
    """How many of them were not computed now."""
    outcome: CacheOutcome | None = None
    """None without a cache."""


class PromptEncoder:
    """One per process."""

    def __init__(self, tokenizer: Tokenizer, cache: EncodingCache | None = None) -> None:
        self._tokenizer = tokenizer
        self._cache = cache

    def encode(self, prompts: Sequence[PromptText]) -> list[PromptIds | Exception]:
        """The ids of each, or what is wrong with it."""
        plans: list[list[Key | int] | Exception] = []
        for prompt in prompts:
            try:
                plans.append(self._plan(prompt))
            except Exception as error:
                plans.append(error)
        keys = list(
            dict.fromkeys(key for plan in plans if isinstance(plan, list) for key in plan if type(key) is tuple)
        )
        known: dict[Key, Sequence[int] | Exception] = {}
        missing = keys
        if self._cache is not None:
            kept = [key for key in keys if key[1] != SHORT]
            known = {key: ids for key, ids in zip(kept, self._cache.get(kept), strict=True) if ids is not None}
            missing = [key for key in keys if key not in known]
        if missing:
            found = dict(zip(missing, self._encode_parts(missing), strict=True))
            if self._cache is not None:
                self._cache.put((key, ids) for key, ids in found.items() if isinstance(ids, list) and key[1] != SHORT)
            known.update(found)
        computed = set(missing)
        return [self._assembled(plan, known, computed) for plan in plans]

    def _plan(self, prompt: PromptText) -> list[Key | int]:
        """A prompt as parts to look up and ids that are known."""
        tokenizer, salt, text = self._tokenizer, prompt.salt, prompt.text
        if prompt.add_special_tokens and len(text) <= SHORT_CHARS and not prompt.split_special_tokens:
            return [(salt, SHORT, text)]
        if prompt.add_special_tokens and (self._cache is None or tokenizer.affixes is None):
            return [(salt, PLAIN_WHOLE if prompt.split_special_tokens else WHOLE, text)]
        before, behind = tokenizer.affixes if prompt.add_special_tokens and tokenizer.affixes else ([], [])
        if prompt.split_special_tokens:
            return [*before, (salt, PLAIN_FIRST, text), *behind]
        if self._cache is None and not prompt.plain:
            return [(salt, FIRST, text)]
        plan: list[Key | int] = [*before]
        for part in tokenizer.boundaries.parts(text, prompt.plain):
            if part.token_id is not None:
                plan.append(part.token_id)
                continue
            kind = LATER if part.start else FIRST
            if prompt.plain:
                marked = [place for place in prompt.plain if part.start <= place < part.start + len(part.text)]
                if marked:
                    tokenizer.refuse_other_special_tokens(part.text, {place - part.start for place in marked})
                    kind = PLAIN_LATER if part.start else PLAIN_FIRST
            plan.append((salt, kind, part.text))
        return plan + behind

    def _encode_parts(self, keys: Sequence[Key]) -> list[list[int] | Exception]:
        """The ids of each part, or its error; those of a kind in one call where that is worth it."""
        found: dict[Key, list[int]] = {}
        for add_special_tokens in (False, True):
            kinds = (WHOLE, SHORT) if add_special_tokens else (FIRST, LATER)
            together = [key for key in keys if key[1] in kinds]
            if len(together) > 1 and sum(len(key[2]) for key in together) > ONE_BY_ONE_CHARS:
                found.update(self._encode_together(together, add_special_tokens))
        return [found[key] if key in found else self._encode_part(key) for key in keys]

    def _encode_together(self, keys: Sequence[Key], add_special_tokens: bool) -> dict[Key, list[int]]:
        """Nothing when one of them fails, be it in the library: it is found again by itself."""
        guard = self._tokenizer.boundaries.guard
        texts = [guard + text if kind == LATER else text for _, kind, text in keys]
        try:
            encodings = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        except Exception:
            return {}
        return {
            key: encoding.token_ids[1:] if key[1] == LATER else encoding.token_ids
            for key, encoding in zip(keys, encodings, strict=True)
        }

    def _encode_part(self, key: Key) -> list[int] | Exception:
        _, kind, text = key
        tokenizer = self._tokenizer
        try:
            if kind == LATER:
                return tokenizer.encode(tokenizer.boundaries.guard + text, add_special_tokens=False).token_ids[1:]
            if kind in (PLAIN_WHOLE, PLAIN_FIRST, PLAIN_LATER):
                return tokenizer.encode_plain(
                    text, add_special_tokens=kind == PLAIN_WHOLE, behind_boundary=kind == PLAIN_LATER
                )
            return tokenizer.encode(text, add_special_tokens=kind in (WHOLE, SHORT)).token_ids
        except Exception as error:
            return error

    def _assembled(
        self,
        plan: list[Key | int] | Exception,
        known: dict[Key, Sequence[int] | Exception],
        computed: set[Key],
    ) -> PromptIds | Exception:
        if isinstance(plan, Exception):
            return plan
        found = PromptIds()
        ids = found.token_ids
        num_parts = num_known = 0
        for key in plan:
            if isinstance(key, int):
                ids.append(key)
                continue
            part = known[key]
            if isinstance(part, Exception):
                return part
            ids.extend(part)
            if key[1] == SHORT:
                continue
            num_parts += 1
            if key not in computed:
                num_known += 1
                found.num_cached += len(part)
        if self._cache is not None and num_parts:
            full, none = num_known == num_parts, num_known == 0
            found.outcome = CacheOutcome.HIT if full else CacheOutcome.MISS if none else CacheOutcome.PART
        return found
