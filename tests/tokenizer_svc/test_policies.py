"""What the policies promise: load guards, minimal movement, no herd."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.replica import FakeReplica
from tokenizer_svc import prompt_blocks
from tokenizer_svc.policies import (
    POLICIES,
    TOKENS_PER_LOAD,
    PowerOfTwo,
    PrefixCache,
    SessionAffinity,
    needs_cache_events,
    policy_of,
)
from tokenizer_svc.router import PickReason, Router, RoutingQuery
from tokenwire.block_hash import SHARED_SCHEME, block_hashes, cache_root
from tokenwire.cache_events import CacheChange, CacheEvent

BLOCK_SIZE = 16
PROMPT = list(range(2048))


def replicas_of(count: int) -> list[FakeReplica]:
    made = [FakeReplica(f"tier-{index}:1") for index in range(count)]
    for replica in made:
        replica.cache.connect(1, SHARED_SCHEME, BLOCK_SIZE)
    return made


def hold(replica: FakeReplica, token_ids: Sequence[int]) -> None:
    hashes = block_hashes(cache_root("", "", SHARED_SCHEME), token_ids, BLOCK_SIZE)
    assert replica.cache.apply(CacheEvent(1, 1, CacheChange.STORED, tuple(hashes)))


def test_every_name_is_a_policy_that_chooses_one_of_those_given() -> None:
    for name in POLICIES:
        replicas = replicas_of(5)
        for _ in range(50):
            among = random.sample(replicas, random.randint(2, 5))
            assert policy_of(name, 0.5).choose(RoutingQuery(PROMPT, tenant="t"), among).replica in among
    assert [name for name in POLICIES if needs_cache_events(name)] == ["prefix-cache"]


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_takes_one_that_is_beyond_the_guard_for_no_reason(name: str) -> None:
    idle, busy = replicas_of(2)
    busy.load = 0.6
    hold(busy, PROMPT)
    for tenant in map(str, range(20)):
        query = RoutingQuery(PROMPT[:1024], tenant=tenant)
        assert policy_of(name, 0.5).choose(query, [idle, busy]).replica is idle


def test_the_longest_cached_beginning_wins_while_it_is_worth_its_load() -> None:
    none, short, long, longest = replicas = replicas_of(4)
    for replica, held in ((short, 256), (long, 512), (longest, 1024)):
        hold(replica, PROMPT[:held])
    policy, query = PrefixCache(0.5), RoutingQuery(PROMPT[:1040])
    pick = policy.choose(query, replicas)
    assert (pick.replica, pick.reason, pick.num_cached_tokens) == (longest, PickReason.PREFIX, 1024)
    longest.load = 512 / TOKENS_PER_LOAD
    for _ in range(20):
        assert policy.choose(query, [none, longest]).replica is longest
    longest.load = 1024 / TOKENS_PER_LOAD + 0.01
    pick = policy.choose(query, [none, longest])
    assert (pick.replica, pick.reason, pick.num_cached_tokens) == (none, PickReason.PREFIX_BUSY, 0)


def test_an_own_prompt_counts_as_cached_at_once() -> None:
    replicas = replicas_of(8)
    policy = PrefixCache(0.5)
    first = policy.choose(RoutingQuery(PROMPT[:200]), replicas)
    assert first.reason is PickReason.POWER_OF_TWO
    for _ in range(20):
        again = policy.choose(RoutingQuery([*PROMPT[:200], 7]), replicas)
        assert (again.replica, again.reason, again.num_cached_tokens) == (first.replica, PickReason.PREFIX, 192)
    assert policy.choose(RoutingQuery(PROMPT[:200], cache_salt="other"), replicas).reason is PickReason.POWER_OF_TWO


def test_a_short_prompt_and_replicas_without_a_cache_go_by_load() -> None:
    replicas = replicas_of(2)
    replicas[0].load = 0.1
    for query in (RoutingQuery([1, 2, 3]), RoutingQuery([])):
        pick = PrefixCache(0.5).choose(query, replicas)
        assert (pick.replica, pick.reason) == (replicas[1], PickReason.POWER_OF_TWO)
    bare = [FakeReplica("a", 0.1), FakeReplica("b")]
    assert PrefixCache(0.5).choose(RoutingQuery(PROMPT), bare).replica is bare[1]


@given(st.integers(2, 8), st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=40), st.randoms())
def test_a_lost_replica_moves_its_own_keys_alone(count: int, tenants: set[str], rng: random.Random) -> None:
    replicas, policy = replicas_of(count), SessionAffinity(0.5)

    def places(among: list[FakeReplica]) -> dict[str, str]:
        return {tenant: policy.choose(RoutingQuery(tenant=tenant), among).replica.target for tenant in tenants}

    before = places(replicas)
    lost = rng.choice(replicas)
    left = [replica for replica in replicas if replica is not lost]
    rng.shuffle(left)
    if len(left) > 1:
        after = places(left)
        assert {tenant for tenant in tenants if before[tenant] != after[tenant]} == {
            tenant for tenant in tenants if before[tenant] == lost.target
        }
    assert places(rng.sample(replicas, count)) == before, "every router says the same, in whatever order it knows them"


def test_keys_are_spread_and_salts_are_keys_too() -> None:
    replicas, policy = replicas_of(4), SessionAffinity(0.5)
    found = Counter(policy.choose(RoutingQuery(cache_salt=f"c{n}"), replicas).replica.target for n in range(2000))
    assert len(found) == 4 and min(found.values()) > 400
    assert policy.choose(RoutingQuery(), replicas).reason is PickReason.POWER_OF_TWO


def test_a_key_whose_replica_has_too_much_to_do_has_one_second_choice() -> None:
    replicas, policy = replicas_of(4), SessionAffinity(0.5)
    query = RoutingQuery(tenant="t")
    own = policy.choose(query, replicas).replica
    assert isinstance(own, FakeReplica)
    own.load = 0.5
    assert policy.choose(query, replicas).reason is PickReason.AFFINITY
    own.load = 0.51
    seconds = {policy.choose(query, replicas).replica.target for _ in range(20)}
    assert len(seconds) == 1 and own.target not in seconds
    assert policy.choose(query, replicas).reason is PickReason.AFFINITY_BUSY


def test_routers_with_the_same_old_reports_do_not_all_take_the_same_replica() -> None:
    replicas = replicas_of(8)
    for replica in replicas[1:]:
        replica.load = 0.1
    for policy in (PowerOfTwo(), PrefixCache(0.5)):
        taken = Counter(policy.choose(RoutingQuery([n] * 20), replicas).replica.target for n in range(800))
        assert taken["tier-0:1"] < 800 * 0.4, "a quarter of all draws has it among the two"
        assert len(taken) == 8


def test_with_one_replica_to_choose_from_nothing_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[object] = []
    monkeypatch.setattr(prompt_blocks, "block_hash", lambda *arguments: hashed.append(arguments) or 1)
    replicas = replicas_of(2)
    router = Router(replicas, PrefixCache(0.5))
    replicas[1].ready = False
    assert router.pick(RoutingQuery(PROMPT)) is replicas[0] and not hashed
    replicas[1].ready = True
    router.pick(RoutingQuery(PROMPT))
    assert hashed
