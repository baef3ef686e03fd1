import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_svc.engine.block_pool import BlockPool


def test_blocks_are_handed_out_once_and_come_back() -> None:
    pool = BlockPool(4)
    first = pool.allocate(3)
    assert len(set(first)) == 3 and pool.num_free == 1 and pool.num_used == 3
    pool.release(first)
    assert pool.num_free == 4
    pool.check_integrity([])


def test_the_block_freed_longest_ago_is_reused_first() -> None:
    pool = BlockPool(3)
    a, b, c = pool.allocate(3)
    for block in (a, b, c):
        pool.store(block, "", (block,), block)
    pool.release([b])
    pool.release([a])
    pool.release([c])
    assert pool.allocate(3) == [b, a, c]


def test_more_than_there_is_is_refused_and_changes_nothing() -> None:
    pool = BlockPool(2)
    with pytest.raises(ValueError, match="3 blocks asked for, 2 are free"):
        pool.allocate(3)
    assert pool.num_free == 2


def test_a_double_release_is_an_error() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="nobody holds it"):
        pool.release(blocks)


def test_integrity_check_sees_a_leak_and_a_double_owner() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    pool.check_integrity([blocks])
    with pytest.raises(AssertionError):
        pool.check_integrity([])
    with pytest.raises(AssertionError):
        pool.check_integrity([blocks, blocks[:1]])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_any_order_of_allocations_and_releases_adds_up(moves: list[tuple[bool, int]]) -> None:
    pool, tables = BlockPool(12), []
    for take, amount in moves:
        if take and amount <= pool.num_free:
            tables.append(pool.allocate(amount))
        elif not take and tables:
            pool.release(tables.pop(amount % len(tables)))
        pool.check_integrity(tables)
        assert pool.num_used == sum(map(len, tables))
