"""A prompt's blocks by their hashes, and how many of them caches hold from its beginning on.

Hashes are made as the model tier makes them (`tokenwire.block_hash`), one after the other, and only as far as they are
asked for: a long prompt that nobody has cached costs one hash and those that are noted.
"""

from collections.abc import Iterator, Sequence

from tokenizer_svc.cache_view import CacheView
from tokenwire.block_hash import block_hash, cache_root, root_hash

MAX_BLOCKS = 1024
"""Of one prompt: who has so many is as good as who has more."""
MAX_NOTED_BLOCKS = 256
"""Of one prompt that count as cached where it was just sent."""


class PromptBlocks:
    """One prompt under its tenant, salt and adapter."""

    def __init__(self, token_ids: Sequence[int], tenant: str, cache_salt: str, adapter: str = "") -> None:
        self._adapter = adapter
        self._token_ids = token_ids
        self._tenant = tenant
        self._cache_salt = cache_salt
        self._chains: dict[tuple[str, int], _Chain] = {}

    def cached_tokens(self, caches: Sequence[CacheView]) -> list[int]:
        """Tokens at the prompt's beginning that each cache holds in whole blocks."""
        found = [0] * len(caches)
        by_kind: dict[tuple[str, int], list[int]] = {}
        for index, cache in enumerate(caches):
            if cache.scheme and cache.block_size:
                by_kind.setdefault((cache.scheme, cache.block_size), []).append(index)
        for (scheme, block_size), holders in by_kind.items():
            for hashed in self._chain(scheme, block_size).first(MAX_BLOCKS):
                holders = [index for index in holders if caches[index].holds(hashed)]
                if not holders:
                    break
                for index in holders:
                    found[index] += block_size
        return found

    def beginning(self, cache: CacheView) -> Iterator[int]:
        """Hashes of the first blocks, as this cache names them; none when it does not."""
        if not cache.scheme or not cache.block_size:
            return iter(())
        return self._chain(cache.scheme, cache.block_size).first(MAX_NOTED_BLOCKS)

    def _chain(self, scheme: str, block_size: int) -> "_Chain":
        kind = (scheme, block_size)
        if kind not in self._chains:
            root = cache_root(self._tenant, self._cache_salt, scheme, self._adapter)
            self._chains[kind] = _Chain(self._token_ids, block_size, root)
        return self._chains[kind]


class _Chain:
    """The hashes under one scheme and block size, made when they are first asked for."""

    def __init__(self, token_ids: Sequence[int], block_size: int, root: str) -> None:
        self._token_ids = token_ids
        self._block_size = block_size
        self._parent = root_hash(root)
        self._hashes: list[int] = []

    def first(self, most: int) -> Iterator[int]:
        """The hashes of the first blocks, at most so many; a block that is not whole has none."""
        size = self._block_size
        for index in range(min(most, len(self._token_ids) // size)):
            if index == len(self._hashes):
                self._parent = block_hash(self._parent, self._token_ids[index * size : (index + 1) * size])
                self._hashes.append(self._parent)
            yield self._hashes[index]
