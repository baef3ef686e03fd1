"""Block tables on the device, a row per sequence slot: a step sends only what changed since the last one.

A slot passes to another sequence without notice, and a sequence that was preempted comes back with other blocks; so the
host remembers whose table a row holds and which blocks are in it, and compares. What follows a sequence's last block is
its first one, where a mask hides it: any other may be broken by now. Does not know what is in a block.
"""

from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from model_svc.engine.batch import ScheduledRow
from model_svc.model.paged import Ints
from tokenwire.errors import Internal

NUM_ARRAYS = 4


class BlockTables:
    """Tables of `num_slots` slots, of up to `max_blocks` blocks each, on the host and on the device."""

    def __init__(self, num_slots: int, max_blocks: int, device: torch.device) -> None:
        self.max_blocks = max_blocks
        self.on_host: Ints = np.zeros((num_slots, max_blocks), dtype=np.int64)
        """[num_slots, max_blocks]: right up to each sequence's last block."""
        self._on_device = torch.zeros(num_slots, max_blocks, dtype=torch.int64, device=device)
        self._sent: list[tuple[int, list[int]]] = [(-1, [])] * num_slots
        """By slot: the sequence_id whose table is in the row, and its blocks there."""

    def changes(self, rows: Rows[ScheduledRow]) -> tuple[Ints, Ints, Ints, Ints]:
        """What the device's tables lack of these rows': NUM_ARRAYS arrays for `write`, before the next call.

        Slots [F] that have another sequence or other blocks than before, and the first block of each; places [E] in
        the flattened tables, and the block at each. Raises Internal for rows without a slot of their own.
        """
        self._check([row.sequence.slot for row in rows])
        fresh: list[int] = []
        firsts: list[int] = []
        places: list[int] = []
        blocks: list[int] = []
        for row in rows:
            sequence = row.sequence
            slot, table = sequence.slot, sequence.block_table
            owner, sent = self._sent[slot]
            num_sent = len(sent)
            if owner != sequence.sequence_id or (table if len(table) == num_sent else table[:num_sent]) != sent:
                sent, num_sent = [], 0
                self._sent[slot] = (sequence.sequence_id, sent)
                fresh.append(slot)
                firsts.append(table[0])
            if len(table) > num_sent:
                new = table[num_sent : self.max_blocks]
                self.on_host[slot, num_sent : num_sent + len(new)] = new
                sent += new
                start = slot * self.max_blocks + num_sent
                places += range(start, start + len(new))
                blocks += new
        made = [np.array(values, dtype=np.int64) for values in (fresh, firsts, places, blocks)]
        return made[0], made[1], made[2], made[3]

    def write(self, fresh: Tensor, firsts: Tensor, places: Tensor, blocks: Tensor) -> None:
        """Bring the device's tables up to date with what `changes` gave."""
        if len(fresh):
            self._on_device.index_copy_(0, fresh, firsts[:, None].expand(-1, self.max_blocks))
        if len(places):
            self._on_device.view(-1).index_copy_(0, places, blocks)

    def of_rows(self, slots: Tensor, width: int) -> Tensor:
        """[N, width] int64, a copy: the tables of `slots` [N]."""
        return self._on_device[:, :width].index_select(0, slots)

    def forget(self) -> None:
        """No row is anyone's any more: what `changes` gave may not have been written."""
        self._sent = [(-1, [])] * len(self._sent)

    def _check(self, slots: list[int]) -> None:
        if min(slots) < 0 or max(slots) >= len(self._sent) or len(set(slots)) < len(slots):
            raise Internal(f"running sequences need slots of their own below {len(self._sent)}, not {slots}")
