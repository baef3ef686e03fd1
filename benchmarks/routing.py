"""Routing policies compared in simulated time: the real router, policies and cache views over modelled model tiers.

    python -m benchmarks.routing [--replicas 4] [--routers 1,4] [--seconds 60] [--rate 1.0] [--lag-ms 5]

A modelled tier computes in steps: a fixed time, some for each decoding sequence and some for each prefilled token,
within a token budget; blocks of prompts and answers are kept in LRU order within its KV cache. What it says of
itself (load, cache events) reaches every router some milliseconds after the step. Requests come at random times,
through a random router. No model, no wire, no real time: the figures compare policies, they promise nothing of a
machine.
"""

import argparse
import heapq
import itertools
import random
import statistics
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.tables import markdown
from tokenizer_svc.cache_view import CacheView
from tokenizer_svc.policies import POLICIES, policy_of
from tokenizer_svc.router import Policy, Router, RoutingQuery
from tokenwire.block_hash import SHARED_SCHEME, block_hashes, cache_root
from tokenwire.cache_events import CacheChange, CacheEvent
from tokenwire.routing.breaker import Breaker

BLOCK_SIZE = 16


@dataclass(frozen=True)
class TierModel:
    """What a modelled tier can do; about an 8B model on one large GPU."""

    step_s: float = 0.008
    decode_s: float = 0.00003
    prefill_token_s: float = 0.00006
    max_batch_size: int = 64
    max_step_tokens: int = 2048
    kv_blocks: int = 8192
    lag_s: float = 0.005
    """From the end of a step until routers know what it changed."""


@dataclass
class Request:
    """One request, and what became of it."""

    tenant: str
    token_ids: list[int]
    num_output: int
    arrival_s: float = 0.0
    first_token_s: float = 0.0
    end_s: float = 0.0
    num_cached: int = 0
    num_left: int = 0
    """Prompt tokens to compute."""
    num_made: int = 0
    on_end: Callable[["Request"], None] = field(default=lambda request: None)

    @property
    def answer(self) -> list[int]:
        rng = random.Random(f"{self.tenant} {len(self.token_ids)} {self.token_ids[-1]}")
        return [rng.randrange(1 << 17) for _ in range(self.num_output)]


class Clock:
    """Simulated time: what happens next, and when."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def __call__(self) -> float:
        return self.now_s

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._numbers), call))

    def run(self) -> None:
        while self._events:
            self.now_s, _, call = heapq.heappop(self._events)
            call()


class ModelledTier:
    """One model tier."""

    def __init__(self, clock: Clock, model: TierModel) -> None:
        self.clock = clock
        self.model = model
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.seen_by: list[SeenTier] = []
        self.most_to_do = 0
        self.busy_s = 0.0
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._number = 0
        self._stepping = False

    def submit(self, request: Request) -> None:
        self.waiting.append(request)
        self.most_to_do = max(self.most_to_do, len(self.waiting) + len(self.running))
        self._begin_step()

    def _begin_step(self) -> None:
        if self._stepping or not (self.waiting or self.running):
            return
        self._stepping = True
        model = self.model
        while self.waiting and len(self.running) < model.max_batch_size:
            self._start(self.waiting.popleft())
        decoding = [request for request in self.running if not request.num_left]
        budget = model.max_step_tokens - len(decoding)
        chunks: list[tuple[Request, int]] = []
        for request in self.running:
            if request.num_left and budget > 0:
                chunks.append((request, min(budget, request.num_left)))
                budget -= chunks[-1][1]
        prefilled = sum(tokens for _, tokens in chunks)
        took_s = model.step_s + len(decoding) * model.decode_s + prefilled * model.prefill_token_s
        self.busy_s += took_s
        self.clock.after(took_s, lambda: self._end_step(decoding, chunks))

    def _start(self, request: Request) -> None:
        hashes = block_hashes(cache_root(request.tenant, "", SHARED_SCHEME), request.token_ids, BLOCK_SIZE)
        for hashed in hashes[: (len(request.token_ids) - 1) // BLOCK_SIZE]:
            if hashed not in self._cached:
                break
            self._cached.move_to_end(hashed)
            request.num_cached += BLOCK_SIZE
        request.num_left = len(request.token_ids) - request.num_cached
        self.running.append(request)

    def _end_step(self, decoding: list[Request], chunks: list[tuple[Request, int]]) -> None:
        self._stepping = False
        ended: list[Request] = []
        for request, tokens in chunks:
            request.num_left -= tokens
            if not request.num_left:
                request.first_token_s = self.clock.now_s
                self._store(request, request.token_ids)
                request.num_made = 1
        for request in decoding:
            request.num_made += 1
        for request in [request for request, _ in chunks] + decoding:
            if request.num_made >= request.num_output:
                ended.append(request)
                self.running.remove(request)
                request.end_s = self.clock.now_s
                self._store(request, request.token_ids + request.answer)
        load = len(self.running) + len(self.waiting)
        for seen in self.seen_by:
            self.clock.after(self.model.lag_s, lambda seen=seen: seen.on_report(load, ended))
        for request in ended:
            self.clock.after(self.model.lag_s, lambda request=request: request.on_end(request))
        self._begin_step()

    def _store(self, request: Request, token_ids: Sequence[int]) -> None:
        stored: list[int] = []
        for hashed in block_hashes(cache_root(request.tenant, "", SHARED_SCHEME), token_ids, BLOCK_SIZE):
            if hashed not in self._cached:
                stored.append(hashed)
            self._cached[hashed] = None
            self._cached.move_to_end(hashed)
        removed: list[int] = []
        while len(self._cached) > self.model.kv_blocks:
            removed.append(self._cached.popitem(last=False)[0])
        for change, hashes in ((CacheChange.REMOVED, removed), (CacheChange.STORED, stored)):
            if hashes:
                self._number += 1
                event = CacheEvent(1, self._number, change, tuple(hashes))
                for seen in self.seen_by:
                    self.clock.after(self.model.lag_s, lambda seen=seen, event=event: seen.on_event(event))


class SeenTier:
    """A model tier as one router sees it: late, and with what this router has under way itself."""

    max_context_tokens = vocab_size = 0
    ready = True

    def __init__(self, target: str, tier: ModelledTier) -> None:
        self.target = target
        self.breaker = Breaker(clock=tier.clock)
        self.cache = CacheView(clock=tier.clock)
        self.cache.connect(1, SHARED_SCHEME, BLOCK_SIZE)
        self._tier = tier
        self._own: set[int] = set()
        self._num_reported = self._num_own_at_report = 0
        tier.seen_by.append(self)

    @property
    def load(self) -> float:
        """As ModelReplica has it."""
        num_own = len(self._own)
        return max(num_own, self._num_reported + num_own - self._num_own_at_report) / self._tier.model.max_batch_size

    def problem(self) -> str:
        return ""

    def submit(self, submission: Any, receivers: Any = ()) -> Any:
        self._own.add(id(submission))
        self._tier.submit(submission)

    def on_report(self, load: int, ended: list[Request]) -> None:
        self._own.difference_update(map(id, ended))
        self._num_reported, self._num_own_at_report = load, len(self._own)

    def on_event(self, event: CacheEvent) -> None:
        assert self.cache.apply(event)


class Simulation:
    """Some routers over some tiers. Every request that ended is in `done`."""

    def __init__(
        self, make_policy: Callable[[], Policy], num_replicas: int, num_routers: int, model: TierModel | None = None
    ) -> None:
        self.clock = Clock()
        self.tiers = [ModelledTier(self.clock, model or TierModel()) for _ in range(num_replicas)]
        self.routers = [
            Router([SeenTier(f"tier-{index}:1", tier) for index, tier in enumerate(self.tiers)], make_policy())
            for _ in range(num_routers)
        ]
        self.done: list[Request] = []

    def arrive(self, request: Request) -> None:
        """A request comes in now."""
        request.arrival_s = self.clock.now_s
        then = request.on_end

        def end(request: Request) -> None:
            self.done.append(request)
            then(request)

        request.on_end = end
        router = random.choice(self.routers)
        replica = router.pick(RoutingQuery(request.token_ids, "", request.tenant))
        replica.submit(request, ())


def some_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(1 << 17) for _ in range(count)]


def some_length(rng: random.Random, mean: int) -> int:
    """Uneven, so that what began together does not end together."""
    return rng.randint(mean // 4, 2 * mean - mean // 4)


def unique(sim: Simulation, rng: random.Random, shared: list[list[int]]) -> Request:
    """Nothing shared: 512 tokens in, about 64 out."""
    return Request(f"t{rng.randrange(64)}", some_tokens(rng, 512), some_length(rng, 64))


def system_prompts(sim: Simulation, rng: random.Random, prompts: list[list[int]]) -> Request:
    """64 system prompts of 1,024 tokens, few of them popular, and 128 tokens of one's own; about 64 out."""
    index = min(int(rng.paretovariate(0.8)) - 1, 63)
    while len(prompts) <= index:
        prompts.append(some_tokens(rng, 1024))
    return Request(f"t{index}", prompts[index] + some_tokens(rng, 128), some_length(rng, 64))


def hot_document(sim: Simulation, rng: random.Random, document: list[list[int]]) -> Request:
    """Four of five ask about one document of 4,096 tokens, by one tenant; about 64 out."""
    if not document:
        document.append(some_tokens(rng, 4096))
    if rng.random() < 0.8:
        return Request("hot", document[0] + some_tokens(rng, 64), some_length(rng, 64))
    return Request(f"t{rng.randrange(64)}", some_tokens(rng, 512), some_length(rng, 64))


def chat(sim: Simulation, rng: random.Random, systems: list[list[int]]) -> Request:
    """Conversations of eight turns under eight system prompts of 512 tokens; 128 in and about 128 out a turn."""
    if not systems:
        systems += [some_tokens(rng, 512) for _ in range(8)]

    def turn(tenant: str, history: list[int], number: int) -> Request:
        def go_on(request: Request) -> None:
            if number < 8:
                longer = request.token_ids + request.answer
                think_s = rng.expovariate(1 / 3.0)
                sim.clock.after(think_s, lambda: sim.arrive(turn(tenant, longer, number + 1)))

        return Request(tenant, history + some_tokens(rng, 128), some_length(rng, 128), on_end=go_on)

    return turn(f"user{rng.randrange(10**9)}", list(rng.choice(systems)), 1)


WORKLOADS: dict[str, tuple[Callable[[Simulation, random.Random, list[list[int]]], Request], float]] = {
    "unique": (unique, 17.0),
    "system prompts": (system_prompts, 17.0),
    "hot document": (hot_document, 9.0),
    "chat": (chat, 1.6),
}
"""Each with the arrivals per second and replica that are called rate 1."""


@dataclass(frozen=True)
class Figures:
    """What one run gave."""

    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    hit_rate: float
    most_to_do: int
    busy: float


def simulate(
    make_policy: Callable[[], Policy],
    workload: str,
    *,
    num_replicas: int = 4,
    num_routers: int = 1,
    seconds: float = 60.0,
    rate: float = 1.0,
    seed: int = 0,
    model: TierModel | None = None,
) -> Figures:
    """One run from empty caches; requests of the first sixth are not in the figures."""
    rng = random.Random(seed)
    random.seed(seed)  # the policies' own draws
    sim = Simulation(make_policy, num_replicas, num_routers, model)
    make, per_s = WORKLOADS[workload]
    shared: list[list[int]] = []
    for at_s in arrivals(rng, per_s * rate * num_replicas, seconds):
        sim.clock.after(at_s, lambda: sim.arrive(make(sim, rng, shared)))
    sim.clock.run()
    counted = [request for request in sim.done if request.arrival_s > seconds / 6]
    ttft = sorted((request.first_token_s - request.arrival_s) * 1e3 for request in counted)
    return Figures(
        statistics.fmean(ttft),
        ttft[len(ttft) // 2],
        ttft[len(ttft) * 99 // 100],
        sum(request.num_cached for request in counted) / sum(len(request.token_ids) for request in counted),
        max(tier.most_to_do for tier in sim.tiers),
        statistics.fmean(tier.busy_s for tier in sim.tiers) / sim.clock.now_s,
    )


def arrivals(rng: random.Random, per_s: float, seconds: float) -> Iterator[float]:
    at_s = rng.expovariate(per_s)
    while at_s < seconds:
        yield at_s
        at_s += rng.expovariate(per_s)


def mean_of(figures: Sequence[Figures]) -> Figures:
    return Figures(*(statistics.fmean(getattr(each, name) for each in figures) for name in Figures.__annotations__))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--routers", default="1,4", help="numbers of routers, separated by commas")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated")
    parser.add_argument("--rate", type=float, default=1.0, help="times each workload's usual arrivals")
    parser.add_argument("--seeds", type=int, default=3, help="runs whose figures are averaged")
    parser.add_argument("--lag-ms", type=float, default=5.0, help="age of what routers know of a tier's last step")
    parser.add_argument("--load-guard", type=float, default=0.5)
    parser.add_argument("--policies", default=",".join(POLICIES))
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    given = parser.parse_args()
    rows = []
    for workload, num_routers, name in itertools.product(
        given.workloads.split(","), map(int, given.routers.split(",")), given.policies.split(",")
    ):
        found = mean_of(
            [
                simulate(
                    lambda name=name: policy_of(name, given.load_guard),
                    workload,
                    num_replicas=given.replicas,
                    num_routers=num_routers,
                    seconds=given.seconds,
                    rate=given.rate,
                    seed=seed,
                    model=TierModel(lag_s=given.lag_ms / 1000),
                )
                for seed in range(given.seeds)
            ]
        )
        ttft = f"{found.ttft_mean_ms:.0f} / {found.ttft_p50_ms:.0f} / {found.ttft_p99_ms:.0f}"
        rows.append(
            [workload, num_routers, name, ttft, f"{found.hit_rate:.0%}", f"{found.most_to_do:.0f}", f"{found.busy:.0%}"]
        )
    head = ["workload", "routers", "policy", "TTFT ms mean / p50 / p99", "cached", "most at one tier", "busy"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
