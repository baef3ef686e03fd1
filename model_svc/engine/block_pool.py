"""The pool of KV blocks: who holds which, and which still hold a prefix that can be used again. Everything in O(1).

Knows block ids, how many hold each, and the tokens of those that are cached. Does not know sequences, positions or the
device.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class CachedBlock:
    """A full block whose keys and values can be used again by whoever has the same tokens up to its end."""

    block: int
    """Its id in the pool; -1 once it is cached no more."""
    block_hash: int
    token_ids: tuple[int, ...]
    """Its own tokens."""
    parent: "CachedBlock | str"
    """The block before it; for a first block, the root that keeps requests apart which must not share."""
    children: set["CachedBlock"] = field(default_factory=set)
    """Cached blocks that continue this one: they cannot be found without it."""


class BlockPool:
    """`num_blocks` blocks with ids from 0. A block is free or held by one or more owners; either may be cached.

    Invariants (see `check_integrity`): a block is in the free list exactly when nobody holds it, and only once. The
    free list begins with blocks that are not cached, then goes from the one used longest ago to the last: what is
    cached lives as long as it can. A cached block's parent is cached, so two cached blocks are the same prefix exactly
    when parent and tokens are the same: hashes are where to look, not what is believed.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_cached = 0
        """Free blocks that are cached."""
        self._num_holders = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._cached: list[CachedBlock | None] = [None] * num_blocks
        self._by_hash: dict[int, CachedBlock] = {}
        self._changes: dict[int, bool] = {}
        """Hashes that became cached (True) or are no more (False) since `take_changes`."""

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, cached or not."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks somebody holds."""
        return self.num_blocks - len(self._free)

    def is_free(self, block: int) -> bool:
        """Whether nobody holds it."""
        return not self._num_holders[block]

    def freed_by(self, tables: Iterable[Sequence[int]]) -> set[int]:
        """The blocks that would be free once the holders with these tables had let go."""
        leaving = Counter(block for table in tables for block in table)
        return {block for block, count in leaving.items() if self._num_holders[block] == count}

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one holder; they are cached no more.

        Raises ValueError when there are fewer.
        """
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} are free")
        blocks: list[int] = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._num_holders[block] = 1
            self.num_cached -= self._cached[block] is not None
            self.forget(block)
            blocks.append(block)
        return blocks

    def hold(self, block: int) -> None:
        """One more holder of a cached block, whether it is free or held."""
        if not self._num_holders[block]:
            del self._free[block]
            self.num_cached -= 1
        self._num_holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One holder of each block lets go. Raises ValueError for a block that nobody holds.

        Blocks come in a sequence's order; the last is free first, so that a prefix outlives what continues it.
        """
        for block in reversed(blocks):
            if not self._num_holders[block]:
                raise ValueError(f"block {block} is released but nobody holds it")
            self._num_holders[block] -= 1
            if not self._num_holders[block]:
                self._free[block] = None
                if self._cached[block] is None:
                    self._free.move_to_end(block, last=False)
                else:
                    self.num_cached += 1

    def find(self, parent: CachedBlock | str, token_ids: Sequence[int], block_hash: int) -> CachedBlock | None:
        """The cached block with these tokens after this parent; None where there is none."""
        found = self._by_hash.get(block_hash)
        if found is None or found.parent != parent or found.token_ids != tuple(token_ids):
            return None
        return found

    def store(
        self, block: int, parent: CachedBlock | str, token_ids: Sequence[int], block_hash: int
    ) -> CachedBlock | None:
        """Make a held block, which is not cached, findable. Returns the cached block with this content.

        That is another one where the same content is cached already, and None where it cannot be cached: its parent is
        cached no more, or its hash is taken by other content.
        """
        if isinstance(parent, CachedBlock) and parent.block < 0:
            return None
        if block_hash in self._by_hash:
            return self.find(parent, token_ids, block_hash)
        stored = CachedBlock(block, block_hash, tuple(token_ids), parent)
        self._cached[block] = self._by_hash[block_hash] = stored
        if isinstance(parent, CachedBlock):
            parent.children.add(stored)
        self._note(block_hash, True)
        return stored

    def forget(self, block: int) -> None:
        """The block is cached no more, nor are those that continue it. No effect on one that is not cached."""
        cached = self._cached[block]
        if cached is None:
            return
        if isinstance(cached.parent, CachedBlock):
            cached.parent.children.discard(cached)
        doomed = [cached]
        while doomed:
            gone = doomed.pop()
            doomed.extend(gone.children)
            gone.children.clear()
            self._cached[gone.block] = None
            del self._by_hash[gone.block_hash]
            self._note(gone.block_hash, False)
            if gone.block in self._free:
                self.num_cached -= 1
                self._free.move_to_end(gone.block, last=False)
            gone.block = -1

    def forget_roots(self, is_meant: Callable[[str], bool]) -> None:
        """What continues the roots that are meant is cached no more. Linear in the blocks."""
        for cached in list(self._cached):
            if cached is not None and isinstance(cached.parent, str) and is_meant(cached.parent):
                self.forget(cached.block)

    def take_changes(self) -> tuple[list[int], list[int]]:
        """Hashes that became cached, and hashes that are no more, since the last call; none is in both."""
        changes, self._changes = self._changes, {}
        return [h for h, stored in changes.items() if stored], [h for h, stored in changes.items() if not stored]

    def _note(self, block_hash: int, stored: bool) -> None:
        if self._changes.get(block_hash, stored) is stored:
            self._changes[block_hash] = stored
        else:
            del self._changes[block_hash]

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the pool and these block tables, all there are, agree."""
        holders = [0] * self.num_blocks
        for table in tables:
            for block in table:
                holders[block] += 1
        if holders != self._num_holders:
            wrong = [b for b in range(self.num_blocks) if holders[b] != self._num_holders[b]]
            raise AssertionError(
                f"blocks {wrong[:10]}: held {[holders[b] for b in wrong[:10]]} times, counted otherwise"
            )
        if sorted(self._free) != [block for block, count in enumerate(holders) if count == 0]:
            raise AssertionError("the free list is not the list of blocks that nobody holds")
        plain = [self._cached[block] is None for block in self._free]
        if plain != sorted(plain, reverse=True) or self.num_cached != len(plain) - sum(plain):
            raise AssertionError("free blocks that are cached do not come last, or are miscounted")
        cached = {block: c for block, c in enumerate(self._cached) if c is not None}
        if len(cached) != len(self._by_hash) or any(
            c.block != block or self._by_hash.get(c.block_hash) is not c for block, c in cached.items()
        ):
            raise AssertionError("a cached block cannot be found by its hash, or a hash finds what is not cached")
        for c in cached.values():
            if isinstance(c.parent, CachedBlock) and (c.parent.block < 0 or c not in c.parent.children):
                raise AssertionError(f"block {c.block} is cached and its parent is not")
