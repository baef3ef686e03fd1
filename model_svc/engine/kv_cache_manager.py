"""Gives sequences the KV blocks they need, shares those of equal prefixes, and takes them back.

Knows how many positions a block holds and which prefixes are cached or being computed. Does not know why a sequence
grows or ends, nor who comes first.
"""

from collections.abc import Iterable
from enum import Enum

from model_svc.engine.block_pool import BlockPool, CachedBlock
from model_svc.engine.sequence import Sequence
from tokenwire.block_hash import block_hash, root_hash


class Placement(Enum):
    """What came of placing a sequence."""

    PLACED = "placed"
    NO_ROOM = "no room"
    AWAITS_PREFIX = "awaits prefix"
    """A sequence of no lower priority is computing the block it needs next, which is cheaper to wait for."""


class KVCacheManager:
    """Block tables over one `BlockPool`. A sequence's table covers at least its computed tokens.

    A placed sequence's full blocks become cached as they are computed (`commit`), for later sequences with the same
    tokens and the same `cache_root`.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self._last_stored: dict[int, CachedBlock | str | None] = {}
        """By id of each placed sequence: what its next full block continues; None: its blocks are cached no longer."""
        self._computing: dict[int, Sequence] = {}
        """By hash: the placed sequence that will compute this block."""

    def num_missing(self, sequence: Sequence, num_tokens: int) -> int:
        """Blocks the sequence lacks to hold `num_tokens` positions."""
        return max(0, -(-num_tokens // self.block_size) - len(sequence.block_table))

    def place(self, sequence: Sequence, *, spare: int = 0) -> Placement:
        """Give a sequence without blocks those of all its tokens, cached ones where there are, and `spare` stay free.

        When PLACED, its `num_computed_tokens` are what the cache held, always fewer than its tokens.
        """
        if self.awaits_prefix(sequence):
            return Placement.AWAITS_PREFIX
        self._extend_hashes(sequence, sequence.num_tokens // self.block_size)
        hits = self._find_prefix(sequence)
        sequence.awaited_hash = self._being_computed(sequence, len(hits))
        if sequence.awaited_hash is not None:
            return Placement.AWAITS_PREFIX
        missing = self.num_missing(sequence, sequence.num_tokens) - len(hits)
        if missing + sum(self.pool.is_free(hit.block) for hit in hits) + spare > self.pool.num_free:
            return Placement.NO_ROOM
        for hit in hits:
            self.pool.hold(hit.block)
        sequence.block_table = [hit.block for hit in hits] + self.pool.allocate(missing)
        sequence.num_computed_tokens = len(hits) * self.block_size
        self._last_stored[sequence.sequence_id] = hits[-1] if hits else sequence.cache_root
        sequence.num_stored_blocks = len(hits)
        for uncomputed in sequence.block_hashes[len(hits) :]:
            self._computing.setdefault(uncomputed, sequence)
        return Placement.PLACED

    def has_room_without(self, sequence: Sequence, others: Iterable[Sequence], *, spare: int = 0) -> bool:
        """Whether a sequence without blocks would find room for its tokens once `others` had given theirs back."""
        self._extend_hashes(sequence, sequence.num_tokens // self.block_size)
        hits = self._find_prefix(sequence)
        freed = self.pool.freed_by(other.block_table for other in others)
        taken = sum(self.pool.is_free(hit.block) or hit.block in freed for hit in hits)
        missing = self.num_missing(sequence, sequence.num_tokens) - len(hits)
        return missing + taken + spare <= self.pool.num_free + len(freed)

    def awaits_prefix(self, sequence: Sequence) -> bool:
        """Whether what `place` last found it to wait for is still being computed."""
        leader = self._computing.get(sequence.awaited_hash) if sequence.awaited_hash is not None else None
        return leader is not None and self._may_lead(leader, sequence)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Extend the table to hold `num_tokens` positions; False, and nothing changed, when blocks run out."""
        if num_tokens <= len(sequence.block_table) * self.block_size:
            return True
        missing = self.num_missing(sequence, num_tokens)
        if missing > self.pool.num_free:
            return False
        sequence.block_table.extend(self.pool.allocate(missing))
        return True

    def commit(self, sequence: Sequence, num_computed_tokens: int) -> None:
        """Cache the blocks that the first so many tokens, computed and known, have filled since the last call."""
        num_full = num_computed_tokens // self.block_size
        if num_full == sequence.num_stored_blocks:
            return
        self._extend_hashes(sequence, num_full)
        parent = self._last_stored[sequence.sequence_id]
        for index in range(sequence.num_stored_blocks, num_full):
            hashed = sequence.block_hashes[index]
            if parent is not None:
                tokens = sequence.token_ids[index * self.block_size : (index + 1) * self.block_size]
                parent = self.pool.store(sequence.block_table[index], parent, tokens, hashed)
            if self._computing.get(hashed) is sequence:
                del self._computing[hashed]
        self._last_stored[sequence.sequence_id] = parent
        sequence.num_stored_blocks = num_full

    def release(self, sequence: Sequence) -> None:
        """Take every block back, from a placed sequence or one without blocks. What was cached stays cached."""
        for hashed in sequence.block_hashes[sequence.num_stored_blocks :]:
            if self._computing.get(hashed) is sequence:
                del self._computing[hashed]
        self._last_stored.pop(sequence.sequence_id, None)
        self.pool.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = sequence.num_stored_blocks = 0

    def forget(self, sequence: Sequence) -> None:
        """Nobody shall find this sequence's blocks any more: their content is not to be trusted."""
        for block in sequence.block_table:
            self.pool.forget(block)

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Raise AssertionError unless these sequences, all there are, account for every block."""
        alive = list(sequences)
        for sequence in alive:
            if sequence.num_computed_tokens > len(sequence.block_table) * self.block_size:
                raise AssertionError(f"sequence {sequence.sequence_id} has more computed tokens than its blocks hold")
        self.pool.check_integrity([sequence.block_table for sequence in alive])
        placed = {sequence.sequence_id for sequence in alive if sequence.block_table}
        if self._last_stored.keys() != placed:
            raise AssertionError("what is placed and what has blocks differ")
        for hashed, leader in self._computing.items():
            if leader.sequence_id not in placed or hashed not in leader.block_hashes[leader.num_stored_blocks :]:
                raise AssertionError(f"block hash {hashed} is awaited from a sequence that will not compute it")

    def _extend_hashes(self, sequence: Sequence, num_full: int) -> None:
        """The hashes of the sequence's first `num_full` blocks, whose tokens are known."""
        hashes, size = sequence.block_hashes, self.block_size
        if len(hashes) < num_full:
            parent = hashes[-1] if hashes else root_hash(sequence.cache_root)
            for start in range(len(hashes) * size, num_full * size, size):
                parent = block_hash(parent, sequence.token_ids[start : start + size])
                hashes.append(parent)

    def _find_prefix(self, sequence: Sequence) -> list[CachedBlock]:
        """The cached blocks that the sequence may begin with: at least one token is left to compute."""
        hits: list[CachedBlock] = []
        parent: CachedBlock | str = sequence.cache_root
        for index in range(sequence.num_cacheable_tokens // self.block_size):
            tokens = sequence.token_ids[index * self.block_size : (index + 1) * self.block_size]
            found = self.pool.find(parent, tokens, sequence.block_hashes[index])
            if found is None:
                break
            hits.append(found)
            parent = found
        return hits

    def _being_computed(self, sequence: Sequence, index: int) -> int | None:
        """The hash of the sequence's block `index` where a placed sequence with the same tokens will compute it."""
        end = (index + 1) * self.block_size
        if end > sequence.num_cacheable_tokens:
            return None
        hashed = sequence.block_hashes[index]
        leader = self._computing.get(hashed)
        if leader is None or not self._may_lead(leader, sequence):
            return None
        return hashed if leader.token_ids[:end] == sequence.token_ids[:end] else None

    @staticmethod
    def _may_lead(leader: Sequence, sequence: Sequence) -> bool:
        """Whether a sequence may wait for what the leader computes."""
        return leader.cache_root == sequence.cache_root and leader.priority >= sequence.priority
