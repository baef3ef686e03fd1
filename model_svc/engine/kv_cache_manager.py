"""Gives sequences the KV blocks they need and takes them back.

Knows how many positions a block holds. Does not know why a sequence grows or ends.
"""

from collections.abc import Iterable

from model_svc.engine.block_pool import BlockPool
from model_svc.engine.sequence import Sequence


class KVCacheManager:
    """Block tables over one `BlockPool`. A sequence's table covers at least its computed tokens."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)

    def num_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks the sequence lacks to hold `num_tokens` positions."""
        return max(0, -(-num_tokens // self.block_size) - len(sequence.block_table))

    def can_grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether `grow` would succeed."""
        return self.num_missing(sequence, num_tokens) <= self.pool.num_free

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Extend the table to hold `num_tokens` positions; False, and nothing changed, when blocks run out."""
        missing = self.num_missing(sequence, num_tokens)
        if missing > self.pool.num_free:
            return False
        sequence.block_table.extend(self.pool.allocate(missing))
        return True

    def release(self, sequence: Sequence) -> None:
        """Take every block back. What was computed is forgotten."""
        self.pool.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = 0

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raise AssertionError unless these sequences, all there are, account for every block."""
        alive = list(sequences)
        for sequence in alive:
            if sequence.num_computed_tokens > len(sequence.block_table) * self.block_size:
                raise AssertionError(f"sequence {sequence.sequence_id} has more computed tokens than its blocks hold")
        self.pool.check_integrity([sequence.block_table for sequence in alive])
