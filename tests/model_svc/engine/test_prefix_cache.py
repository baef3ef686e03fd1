"""Blocks of equal prompt beginnings: shared while held, found again when free, and never believed on a hash alone."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_svc.engine import kv_cache_manager
from model_svc.engine.block_pool import BlockPool, CachedBlock
from tests.fakes.scheduling import Harness, expected_output, sequence
from tokenwire import block_hash
from tokenwire.requests import CancelReason

PROMPT = list(range(100, 120))  # five blocks of four


def run(harness: Harness, *sequences) -> None:  # type: ignore[no-untyped-def]
    harness.add(*sequences)
    harness.run()


def num_cached(harness: Harness, prompt: list[int]) -> int:
    """Tokens of the prompt that are in the cache now."""
    found, size = harness.scheduler.kv.pool.find, harness.scheduler.kv.block_size
    parent: CachedBlock | str | None = ""
    for index, hashed in enumerate(block_hash.block_hashes("", prompt, size)):
        assert parent is not None
        parent = found(parent, prompt[index * size : (index + 1) * size], hashed)
        if parent is None:
            return index * size
    return len(prompt) // size * size


def test_a_prompt_is_found_again_but_for_what_its_last_token_needs() -> None:
    harness = Harness()
    first, again = sequence(PROMPT, max_tokens=2), sequence(PROMPT, max_tokens=2)
    longer, other = sequence([*PROMPT, 7, 8], max_tokens=2), sequence([*PROMPT[:9], *PROMPT[:9]], max_tokens=2)
    for each, cached in ((first, 0), (again, 16), (longer, 20), (other, 8)):
        prompt = list(each.token_ids)
        run(harness, each)
        assert harness.usage(each).cached_tokens == cached
        assert harness.outputs[each.sequence_id] == expected_output(prompt, 2)


def test_output_is_cached_too_so_that_a_conversation_goes_on_where_it_was() -> None:
    harness = Harness()
    first = sequence(PROMPT[:6], max_tokens=10)
    run(harness, first)
    following = sequence(list(first.token_ids) + [1, 2, 3], max_tokens=2)
    run(harness, following)
    assert harness.usage(following).cached_tokens == 12  # of 16 tokens the last was never computed
    assert harness.usage(following).prompt_tokens == 19


def test_other_roots_share_nothing() -> None:
    harness = Harness()
    run(harness, sequence(PROMPT, cache_root="a"))
    other, same = sequence(PROMPT, cache_root="b"), sequence(PROMPT, cache_root="a")
    run(harness, other)
    run(harness, same)
    assert harness.usage(other).cached_tokens == 0
    assert harness.usage(same).cached_tokens == 16


def test_a_cached_prefix_is_shared_while_it_is_held() -> None:
    harness = Harness()
    holder = sequence(PROMPT, max_tokens=30)
    harness.add(holder)
    harness.step()
    used = harness.scheduler.kv.pool.num_used
    sharer = sequence(PROMPT, max_tokens=4)
    harness.add(sharer)
    harness.step()
    assert sharer.block_table[:4] == holder.block_table[:4] and sharer.block_table[4] != holder.block_table[4]
    assert harness.scheduler.kv.pool.num_used <= used + 2
    harness.run()
    assert harness.outputs[sharer.sequence_id] == expected_output(PROMPT, 4)


@pytest.mark.parametrize("budget", [7, 64])
def test_choices_share_their_prompts_blocks(budget: int) -> None:
    """All but the first wait until it has computed what they have in common."""
    harness = Harness(budget=budget)
    choices = [sequence(PROMPT, max_tokens=6, choice=choice) for choice in range(4)]
    run(harness, *choices)
    assert [harness.usage(each).cached_tokens for each in choices] == [0, 16, 16, 16]
    computed = sum(row.num_new_tokens for batch in harness.runner.batches for row in batch.rows)
    assert computed == 20 + 3 * 4 + 4 * 5
    for each in choices:
        assert harness.outputs[each.sequence_id] == expected_output(PROMPT, 6)


def test_choices_go_on_when_the_one_they_wait_for_is_taken_back() -> None:
    harness = Harness(budget=7)
    first, second = (sequence(PROMPT, max_tokens=6) for _ in range(2))
    harness.add(first, second)
    harness.step()
    assert first.slot >= 0 and second.slot < 0
    harness.scheduler.abort(first.sequence_id, CancelReason.CLIENT)
    harness.run()
    assert harness.outputs[second.sequence_id] == expected_output(PROMPT, 6)
    assert harness.usage(second).cached_tokens == 4


def test_nobody_waits_for_a_prefix_that_a_lower_priority_computes() -> None:
    harness = Harness(budget=7)
    low, high = sequence(PROMPT, priority=0), sequence(PROMPT, priority=1)
    harness.add(low)
    harness.step()
    harness.add(high)
    harness.step()
    assert high.slot >= 0


def test_the_prefix_used_longest_ago_goes_first_and_its_end_before_its_beginning() -> None:
    harness = Harness(num_blocks=16, max_context_tokens=60)
    old, new = [1] * 20, [2] * 20
    run(harness, sequence(old, max_tokens=1))
    run(harness, sequence(new, max_tokens=1))
    run(harness, sequence([3] * 36, max_tokens=1))  # 9 blocks: the 6 never used, and three of the oldest
    assert [num_cached(harness, prompt) for prompt in (old, new)] == [8, 20]
    run(harness, sequence([*old[:8], 4], max_tokens=1))  # used again: now the newest
    run(harness, sequence([5] * 16, max_tokens=1))
    assert [num_cached(harness, prompt) for prompt in (old, new)] == [8, 4]


def test_prompt_logprobs_are_computed_not_cached_and_come_once_across_preemption() -> None:
    harness = Harness(num_blocks=16, max_context_tokens=60, budget=9)
    run(harness, sequence(PROMPT, max_tokens=1))
    asking = sequence(PROMPT, max_tokens=3, prompt_logprobs=0, logprobs=2, arrival_s=101.0)
    harness.add(asking)
    harness.step()
    assert asking.num_computed_tokens == 9
    harness.add(sequence([5] * 50, max_tokens=2, priority=1))
    harness.run()
    assert asking.num_preemptions == 1
    assert harness.prompt_logprobs[asking.sequence_id] == PROMPT[1:]
    assert harness.outputs[asking.sequence_id] == expected_output(PROMPT, 3)
    assert harness.usage(asking).cached_tokens == 0


def test_what_a_broken_sequence_computed_is_not_found_again() -> None:
    harness = Harness()
    broken = sequence(PROMPT, max_tokens=9)
    harness.add(broken)
    harness.step()
    assert harness.scheduler.kv.pool.find("", PROMPT[:4], block_hash.block_hashes("", PROMPT, 4)[0])
    harness.runner.bad_sequences.add(broken.sequence_id)
    harness.run()
    again = sequence(PROMPT)
    run(harness, again)
    assert harness.usage(again).cached_tokens == 0


def test_hashes_are_chained_and_depend_on_the_root() -> None:
    plain = block_hash.block_hashes("a", PROMPT, 4)
    assert len(set(plain)) == 5 == len(plain)
    assert block_hash.block_hashes("a", [*PROMPT[:8], 0, *PROMPT[9:]], 4)[:2] == plain[:2]
    assert not set(block_hash.block_hashes("a", [0, *PROMPT[1:]], 4)) & set(plain)
    assert not set(block_hash.block_hashes("b", PROMPT, 4)) & set(plain)


def test_the_hash_scheme_is_what_its_description_says() -> None:
    """Routers of any language compute it: BLAKE2b-64 over the parent's hash and the ids, little-endian."""
    root = hashlib.blake2b(b"alice\0salt", digest_size=8).digest()
    first = hashlib.blake2b(root + bytes([1, 0, 0, 0, 2, 1, 0, 0]), digest_size=8).digest()
    second = hashlib.blake2b(first + bytes([3, 0, 0, 0, 4, 0, 0, 0]), digest_size=8).digest()
    hashes = [int.from_bytes(digest, "little") for digest in (first, second)]
    salted = block_hash.cache_root("alice", "salt", block_hash.TENANT_SCHEME)
    assert block_hash.block_hashes(salted, [1, 258, 3, 4, 5], 2) == hashes
    assert block_hash.cache_root("alice", "salt", block_hash.SHARED_SCHEME) == "\0salt"


@pytest.mark.parametrize("num_hashes", [1, 2, 5])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_colliding_hashes_cost_hits_and_never_a_wrong_token(num_hashes: int, data: st.DataObject) -> None:
    """Prompts over two tokens, with hashes so weak that nearly all collide."""
    prompts = data.draw(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=14), min_size=1, max_size=10))
    roots = data.draw(st.lists(st.sampled_from(["", "b"]), min_size=len(prompts), max_size=len(prompts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache_manager, "block_hash", lambda parent, ids: hash((parent, *ids)) % num_hashes)
        patch.setattr(kv_cache_manager, "root_hash", lambda root: 0)
        harness = Harness(batch=3, budget=6, num_blocks=10, max_context_tokens=20, block_size=2)
        for prompt, root in zip(prompts, roots, strict=True):
            each = sequence(prompt, max_tokens=3, cache_root=root, arrival_s=harness.clock.now_s)
            harness.add(each)
            harness.step()
        harness.run()
    for prompt, sequence_id in zip(prompts, harness.outputs, strict=True):
        assert harness.outputs[sequence_id] == expected_output(prompt, 3)


def test_changes_are_net_over_a_step() -> None:
    pool = BlockPool(3)
    (a,) = pool.allocate(1)
    first = pool.store(a, "", (1,), 11)
    pool.forget(a)
    assert pool.take_changes() == ([], [])
    first = pool.store(a, "", (1,), 11)
    (b,) = pool.allocate(1)
    assert first is not None
    pool.store(b, first, (2,), 12)
    assert pool.take_changes() == ([11, 12], [])
    pool.forget(a)  # and what continues it
    pool.store(a, "", (1,), 11)
    assert pool.take_changes() == ([], [12])
    pool.check_integrity([[a, b]])


def test_a_block_that_continues_one_that_is_gone_is_not_stored() -> None:
    pool = BlockPool(2)
    a, b = pool.allocate(2)
    first = pool.store(a, "", (1,), 11)
    assert first is not None
    pool.forget(a)
    assert pool.store(b, first, (2,), 12) is None
    assert pool.find(first, (2,), 12) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 18), st.integers(1, 6)), min_size=2, max_size=14))
def test_what_is_found_again_is_at_least_what_a_large_pool_must_hold(asked: list[tuple[int, int, int]]) -> None:
    """One after the other, with blocks for all: each prompt finds every whole block that an earlier one computed."""
    harness = Harness(num_blocks=400)
    seen: set[tuple[int, ...]] = set()
    for family, length, max_tokens in asked:
        prompt = [family] + list(range(length - 1))
        each = sequence(prompt, max_tokens=max_tokens)
        run(harness, each)
        wanted = 0
        while (wanted + 4) < length and tuple(prompt[: wanted + 4]) in seen:
            wanted += 4
        assert harness.usage(each).cached_tokens == wanted
        computed = each.token_ids[:-1]
        seen |= {tuple(computed[:end]) for end in range(4, len(computed) + 1, 4)}
