"""The routing policies that look at more than the load of every replica.

All weigh load by the replicas' last reports and what this process has under way itself. Several routers see the same
reports, a little old: who all took the least loaded would all take the same one, so load is compared between two
replicas drawn at random (Mitzenmacher, *The Power of Two Choices in Randomized Load Balancing*, 2001). Plain values
alone.
"""

import random
from collections.abc import Sequence
from hashlib import blake2b

from tokenizer_svc.prompt_blocks import PromptBlocks
from tokenizer_svc.router import LeastLoad, Pick, PickReason, Policy, Replica, RoutingQuery

TOKENS_PER_LOAD = 4096
"""Cached prompt tokens that are worth as much as one step's batch of sequences less to do (decision 13)."""


class PowerOfTwo:
    """The less loaded of two replicas drawn at random."""

    def choose(self, query: RoutingQuery, among: Sequence[Replica]) -> Pick:
        """As Policy says."""
        return Pick(min(random.sample(among, 2), key=_load), PickReason.POWER_OF_TWO)


class PrefixCache:
    """The replica that has most of the prompt cached, unless it has too much to do.

    Candidates are two replicas drawn at random and up to two of those with the longest cached beginning. The one with
    the least load, less what its cached tokens are worth, is taken.
    """

    def __init__(self, load_guard: float) -> None:
        """`load_guard`: most that cached tokens are worth, in load."""
        self._load_guard = load_guard

    def choose(self, query: RoutingQuery, among: Sequence[Replica]) -> Pick:
        """As Policy says; the prompt counts as cached there from now on."""
        blocks = PromptBlocks(query.token_ids, query.tenant, query.cache_salt, query.adapter)
        cached = blocks.cached_tokens([replica.cache for replica in among])
        longest = max(cached)
        candidates = random.sample(range(len(among)), 2)
        if longest:
            holders = [index for index, tokens in enumerate(cached) if tokens == longest]
            candidates += random.sample(holders, min(2, len(holders)))
        taken = min(candidates, key=lambda index: among[index].load - self._worth(cached[index]))
        among[taken].cache.expect(blocks.beginning(among[taken].cache))
        return Pick(among[taken], _prefix_reason(cached[taken], longest), cached[taken])

    def _worth(self, num_cached_tokens: int) -> float:
        return min(self._load_guard, num_cached_tokens / TOKENS_PER_LOAD)


class SessionAffinity:
    """Each tenant and cache salt has a replica of its own, unless that has too much to do; without either: PowerOfTwo.

    Rendezvous hashing (Thaler and Ravishankar, 1998): each key ranks all replicas, so a replica that is lost moves its
    own keys alone, and every router ranks alike.
    """

    def __init__(self, load_guard: float) -> None:
        """`load_guard`: most load a key's own replica may have beyond the least loaded one."""
        self._load_guard = load_guard
        self._without_key = PowerOfTwo()

    def choose(self, query: RoutingQuery, among: Sequence[Replica]) -> Pick:
        """As Policy says."""
        if not query.tenant and not query.cache_salt:
            return self._without_key.choose(query, among)
        key = f"{query.tenant}\0{query.cache_salt}\0"
        own = max(among, key=lambda replica: _rank(key, replica))
        loads = [replica.load for replica in among]
        most = min(loads) + self._load_guard
        if own.load <= most:
            return Pick(own, PickReason.AFFINITY)
        others = [replica for replica, load in zip(among, loads, strict=True) if load <= most]
        return Pick(max(others, key=lambda replica: _rank(key, replica)), PickReason.AFFINITY_BUSY)


POLICIES = ("least-load", "power-of-two", "prefix-cache", "session-affinity")
"""Their names in the settings."""


def policy_of(name: str, load_guard: float) -> Policy:
    """The policy of one of POLICIES. `load_guard`: most load that a cached prefix or an affinity may outweigh."""
    if name == "prefix-cache":
        return PrefixCache(load_guard)
    if name == "session-affinity":
        return SessionAffinity(load_guard)
    return PowerOfTwo() if name == "power-of-two" else LeastLoad()


def needs_cache_events(name: str) -> bool:
    """Whether the policy of this name looks at what replicas have cached."""
    return name == "prefix-cache"


def _load(replica: Replica) -> float:
    return replica.load


def _rank(key: str, replica: Replica) -> bytes:
    return blake2b((key + replica.target).encode(errors="surrogatepass"), digest_size=8).digest()


def _prefix_reason(num_cached_tokens: int, longest: int) -> PickReason:
    if num_cached_tokens < longest:
        return PickReason.PREFIX_BUSY
    return PickReason.PREFIX if longest else PickReason.POWER_OF_TWO
