import random
from collections import Counter

import pytest

from model_svc.engine.adapter_slots import AdapterSlots


def slots_of(num_slots: int, max_bytes: int = 100, **adapters: int) -> AdapterSlots:
    slots = AdapterSlots(num_slots, max_bytes)
    for name, num_bytes in adapters.items():
        slots.add(name, num_bytes)
    return slots


def test_the_one_let_go_longest_ago_gives_way() -> None:
    slots = slots_of(2, a=1, b=1, c=1)
    places = {name: slots.hold(name) for name in "ab"}
    for name in "ba":
        slots.release(name)
    assert slots.hold("c") == places["b"]
    assert slots.hold("a") == places["a"], "it is there still"
    slots.check_integrity([("c", places["b"]), ("a", places["a"])])


def test_what_is_held_stays() -> None:
    slots = slots_of(1, a=1, b=1)
    place = slots.hold("a")
    assert slots.hold("a") == place and not slots.has_room("b")
    slots.release("a")
    assert not slots.has_room("b")
    slots.release("a")
    assert slots.has_room("b") and slots.hold("b") == place
    assert slots.num_on_device == 1 and len(slots) == 2


def test_bytes_bound_what_is_on_the_device_too() -> None:
    slots = slots_of(3, max_bytes=10, small=3, other=3, large=8)
    slots.hold("small")
    slots.hold("other")
    slots.release("other")
    assert not slots.has_room("large"), "small is held"
    slots.release("small")
    assert slots.has_room("large")
    slots.hold("large")
    assert slots.bytes_on_device == 8 and slots.num_on_device == 1


def test_one_that_is_removed_leaves_its_slot() -> None:
    slots = slots_of(1, a=1, b=1)
    slots.hold("a")
    with pytest.raises(ValueError, match="hold it"):
        slots.remove("a")
    slots.release("a")
    slots.remove("a")
    assert "a" not in slots and slots.num_on_device == 0
    slots.hold("b")
    with pytest.raises(ValueError, match="nobody holds it"):
        slots.release("a")


def test_integrity_over_a_long_run() -> None:
    rng, sizes = random.Random(0), {name: 1 + n % 4 for n, name in enumerate("abcdefg")}
    slots, held = slots_of(3, max_bytes=7, **sizes), list[tuple[str, int]]()
    refused = Counter[bool]()
    for _ in range(2000):
        if held and rng.random() < 0.5:
            name, _ = held.pop(rng.randrange(len(held)))
            slots.release(name)
        else:
            name = rng.choice("abcdefg")
            room = slots.has_room(name)
            refused[room] += 1
            if room:
                held.append((name, slots.hold(name)))
        slots.check_integrity(held)
    assert min(refused.values()) > 100
