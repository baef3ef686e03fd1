"""The pool of KV blocks: who holds which, in O(1).

Knows block ids and how many hold each. Does not know sequences, positions or the device.
"""

from collections import deque


class BlockPool:
    """`num_blocks` blocks with ids from 0. A block is either free or held by one or more owners.

    Invariants (see `check_integrity`): a block is in the free list exactly when nobody holds it, and only once. Blocks
    are handed out in the order in which they were given back, so the content of a free block lives as long as it can.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_holders = [0] * num_blocks
        self._free = deque(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks somebody holds."""
        return self.num_blocks - len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one holder. Raises ValueError when there are not that many."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks asked for, {len(self._free)} are free")
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            self._num_holders[block] = 1
        return blocks

    def release(self, blocks: list[int]) -> None:
        """One holder of each of these blocks lets go. Raises ValueError for a block that nobody holds."""
        for block in blocks:
            if self._num_holders[block] == 0:
                raise ValueError(f"block {block} is released but nobody holds it")
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                self._free.append(block)

    def check_integrity(self, tables: list[list[int]]) -> None:
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
        free = sorted(self._free)
        if free != [block for block, count in enumerate(holders) if count == 0]:
            raise AssertionError("the free list is not the list of blocks that nobody holds")
