"""Which adapters are in which slots of the device: those in use stay, the others give way, least recently used first.

Knows names and sizes; does not know what an adapter is, nor who moves it there.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection


class AdapterSlots:
    """`num_slots` slots for adapters of at most `max_bytes` together. Each call is linear in the slots at most."""

    def __init__(self, num_slots: int, max_bytes: int) -> None:
        self.num_slots, self.max_bytes = num_slots, max_bytes
        self._num_bytes: dict[str, int] = {}
        """Of every adapter there is."""
        self._slot_of: OrderedDict[str, int] = OrderedDict()
        """Those on the device; the one let go last comes last."""
        self._num_holders: Counter[str] = Counter()
        self._free = list(range(num_slots))

    def __contains__(self, name: str) -> bool:
        return name in self._num_bytes

    def __len__(self) -> int:
        """Adapters there are, on the device or not."""
        return len(self._num_bytes)

    @property
    def num_on_device(self) -> int:
        """Adapters that have a slot."""
        return len(self._slot_of)

    @property
    def bytes_on_device(self) -> int:
        """What these take."""
        return sum(self._num_bytes[name] for name in self._slot_of)

    def add(self, name: str, num_bytes: int) -> None:
        """There is an adapter of this name; at most `max_bytes` large."""
        self._num_bytes[name] = num_bytes

    def remove(self, name: str) -> None:
        """There is no such adapter any more. Raises ValueError while somebody holds it."""
        if self._num_holders[name]:
            raise ValueError(f"adapter {name!r} is removed while {self._num_holders[name]} sequences hold it")
        del self._num_bytes[name]
        self._evict(name)

    def has_room(self, name: str, without: Collection[str] = ()) -> bool:
        """Whether `hold` would find a slot: the adapter has one, or others that nobody holds make room.

        `without`: those that are taken for held by nobody.
        """
        if name in self._slot_of:
            return True
        held = [other for other in self._slot_of if self._num_holders[other] and other not in without]
        held_bytes = sum(self._num_bytes[other] for other in held)
        return len(held) < self.num_slots and held_bytes + self._num_bytes[name] <= self.max_bytes

    def hold(self, name: str) -> int:
        """One more holder of an adapter for which there is room; its slot."""
        if name not in self._slot_of:
            while not self._free or self.bytes_on_device + self._num_bytes[name] > self.max_bytes:
                self._evict(next(other for other in self._slot_of if not self._num_holders[other]))
            self._slot_of[name] = self._free.pop()
        self._num_holders[name] += 1
        return self._slot_of[name]

    def release(self, name: str) -> None:
        """One holder lets go. Raises ValueError when nobody holds it."""
        if not self._num_holders[name]:
            raise ValueError(f"adapter {name!r} is released but nobody holds it")
        self._num_holders[name] -= 1
        if not self._num_holders[name]:
            del self._num_holders[name]
            self._slot_of.move_to_end(name)

    def _evict(self, name: str) -> None:
        slot = self._slot_of.pop(name, None)
        if slot is not None:
            self._free.append(slot)

    def check_integrity(self, holders: list[tuple[str, int]]) -> None:
        """Raise AssertionError unless these holders, name and slot of each, are all there are."""
        if Counter(name for name, _ in holders) != +self._num_holders:
            raise AssertionError("an adapter is held by others than those that say so")
        if any(self._slot_of.get(name) != slot for name, slot in holders):
            raise AssertionError("a sequence believes its adapter in another slot than it is")
        if sorted([*self._free, *self._slot_of.values()]) != list(range(self.num_slots)):
            raise AssertionError("a slot is lost, or has two adapters")
        if self.bytes_on_device > self.max_bytes:
            raise AssertionError("the adapters on the device are larger than they may be together")
