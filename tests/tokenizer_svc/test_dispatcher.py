"""Dispatcher over replicas whose room the test sets: what goes where, in which order, and what is turned away."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.fakes.replica import FakeClock, FakeReplica
from tokenizer_svc.dispatcher import Dispatcher
from tokenizer_svc.metrics import TokenizerMetrics
from tokenizer_svc.router import Replica, Router, RoutingQuery
from tokenwire.errors import Overloaded, TokenwireError, Unavailable
from tokenwire.routing.breaker import Breaker


@dataclass(eq=False)
class FakePart:
    name: str = ""
    priority: int = 0
    tenant: str = ""
    num_requests: int = 1
    num_tokens: int = 10
    begun: bool = False
    unsuited: Sequence[FakeReplica] = ()
    went: list[str] = field(default_factory=list)
    errors: list[TokenwireError] = field(default_factory=list)
    log: list[str] | None = None
    query: RoutingQuery = RoutingQuery()

    def suits(self, replica: Replica) -> bool:
        return replica not in self.unsuited

    def go(self, replica: Replica) -> None:
        assert isinstance(replica, FakeReplica) and replica.room >= self.num_requests
        replica.room -= self.num_requests
        self.went.append(replica.target)
        if self.log is not None:
            self.log.append(self.name)

    def turn_away(self, error: TokenwireError) -> None:
        self.errors.append(error)


def dispatcher_over(*replicas: FakeReplica, max_held: int = 100, wait_s: float = 10.0) -> Dispatcher:
    metrics = TokenizerMetrics(CollectorRegistry())
    return Dispatcher(Router(list(replicas)), metrics, max_held_requests=max_held, wait_s=wait_s)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_with_room_a_part_goes_at_once() -> None:
    a = FakeReplica("a")
    dispatcher, part = dispatcher_over(a), FakePart()  # no event loop runs: nothing is waited for
    dispatcher.place(part)
    assert part.went == ["a"] and dispatcher.num_held == 0 and a.num_reports == 0


def test_what_is_held_goes_in_order_to_whichever_has_room_first() -> None:
    async def main() -> None:
        log: list[str] = []
        a, b = FakeReplica("a", room=0), FakeReplica("b", room=0)
        dispatcher = dispatcher_over(a, b)
        parts = [FakePart("low", priority=-1, log=log), FakePart("one", log=log), FakePart("two", log=log)]
        for part in parts:
            dispatcher.place(part)
        assert dispatcher.num_held == 3 and not log
        dispatcher.check_integrity()
        assert [(each.priority, each.num_requests) for each in dispatcher.demand()] == [(-1, 1), (0, 2)]
        b.room = 1
        dispatcher.on_room()
        assert log == ["one"] and parts[1].went == ["b"]
        a.room = b.room = 1
        dispatcher.on_room()
        assert log == ["one", "two", "low"] and dispatcher.demand() == []
        assert a.num_reports == 5, "each time that what is held changes"

    run(main)


def test_new_parts_do_not_overtake_and_a_large_one_is_not_starved() -> None:
    async def main() -> None:
        log: list[str] = []
        a = FakeReplica("a", room=1)
        dispatcher = dispatcher_over(a)
        dispatcher.place(FakePart("large", num_requests=2, log=log))
        dispatcher.place(FakePart("small", log=log))
        assert log == []
        a.room = 2
        dispatcher.on_room()
        assert log == ["large"]
        a.room = 1
        dispatcher.on_room()
        assert log == ["large", "small"]

    run(main)


def test_a_part_that_suits_no_replica_with_room_lets_others_pass() -> None:
    async def main() -> None:
        a, b = FakeReplica("a", room=1), FakeReplica("b", room=0)
        dispatcher = dispatcher_over(a, b)
        picky, other = FakePart(unsuited=[a]), FakePart()
        dispatcher.place(picky)
        dispatcher.place(other)
        assert other.went == ["a"] and not picky.went
        b.room = 1
        dispatcher.on_room()
        assert picky.went == ["b"]

    run(main)


def test_what_is_forgotten_never_goes() -> None:
    async def main() -> None:
        a = FakeReplica("a", room=0)
        dispatcher, part = dispatcher_over(a), FakePart()
        dispatcher.place(part)
        dispatcher.forget(part)
        dispatcher.forget(part)
        a.room = 5
        dispatcher.on_room()
        assert not part.went and not part.errors and dispatcher.num_held == 0

    run(main)


def test_a_full_queue_refuses_and_a_displaced_part_is_told() -> None:
    async def main() -> None:
        dispatcher = dispatcher_over(FakeReplica("a", room=0), max_held=2)
        greedy = [FakePart(tenant="greedy") for _ in range(2)]
        for part in greedy:
            dispatcher.place(part)
        with pytest.raises(Overloaded):
            dispatcher.place(FakePart(tenant="greedy"))
        dispatcher.place(FakePart(tenant="modest"))
        (error,) = greedy[1].errors
        assert isinstance(error, Overloaded) and error.reason == "HELD_QUEUE_FULL" and error.retry_after_s
        assert dispatcher.num_held == 2 and not greedy[0].errors

    run(main)


def test_without_a_model_tier_new_parts_are_refused_and_begun_ones_wait_a_while() -> None:
    async def main() -> None:
        a = FakeReplica("a", ready=False)
        dispatcher = dispatcher_over(a, wait_s=0.25)
        with pytest.raises(Unavailable, match="on fire"):
            dispatcher.place(FakePart())
        patient, lucky = FakePart(begun=True), FakePart(begun=True)
        dispatcher.place(patient)
        await asyncio.sleep(0.02)
        assert not patient.errors
        async with asyncio.timeout(5):
            while not patient.errors:
                await asyncio.sleep(0.01)
        assert isinstance(patient.errors[0], Unavailable) and "on fire" in str(patient.errors[0])
        dispatcher.place(lucky)
        a.ready = True
        async with asyncio.timeout(5):
            while not lucky.went:  # nobody says so: found by looking
                await asyncio.sleep(0.01)
        assert dispatcher.num_held == 0

    run(main)


def test_what_waits_for_room_alone_is_not_turned_away() -> None:
    async def main() -> None:
        a = FakeReplica("a", room=0)
        dispatcher, part = dispatcher_over(a, wait_s=0.0), FakePart()
        dispatcher.place(part)
        await asyncio.sleep(0.3)
        assert not part.errors
        a.room = 1
        async with asyncio.timeout(5):
            while not part.went:
                await asyncio.sleep(0.01)

    run(main)


def test_a_replica_that_is_tried_again_gets_one_part() -> None:
    async def main() -> None:
        class Tried(FakePart):
            def go(self, replica: Replica) -> None:
                super().go(replica)
                replica.breaker.on_submit()

        a, b = FakeReplica("a", room=0), FakeReplica("b", room=0)
        clock = FakeClock()
        a.breaker = Breaker(1, clock=clock)
        a.breaker.on_failure("it failed")
        dispatcher, parts = dispatcher_over(a, b), [Tried(str(number)) for number in range(3)]
        for part in parts:
            dispatcher.place(part)
        clock.now_s += 5.0
        a.room = 3
        dispatcher.on_room()
        assert [part.went for part in parts] == [["a"], [], []]
        a.breaker.on_progress()
        dispatcher.on_room()
        assert [part.went for part in parts] == [["a"]] * 3

    run(main)


def test_closing_turns_away_what_is_held_and_what_comes() -> None:
    async def main() -> None:
        dispatcher, part = dispatcher_over(FakeReplica("a", room=0)), FakePart()
        dispatcher.place(part)
        dispatcher.close()
        assert [error.reason for error in part.errors] == ["SHUTTING_DOWN"]
        with pytest.raises(Unavailable):
            dispatcher.place(FakePart(begun=True))

    run(main)


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_lose_nothing_and_leave_no_room_unused(seed: int) -> None:
    async def main() -> None:
        random, log = Random(seed), list[str]()
        replicas = [FakeReplica(str(n), room=random.randint(0, 2)) for n in range(3)]
        dispatcher = dispatcher_over(*replicas, max_held=8)
        parts: list[FakePart] = []
        gone: set[FakePart] = set()
        refused: set[FakePart] = set()
        for number in range(200):
            action = random.random()
            if action < 0.5:
                unsuited = random.sample(replicas, random.choice([0, 0, 1]))
                part = FakePart(
                    str(number), random.randint(-1, 1), random.choice("abc"), random.randint(1, 2),
                    random.randint(1, 50), random.random() < 0.1, unsuited, log=log,
                )  # fmt: skip
                parts.append(part)
                try:
                    dispatcher.place(part)
                except Overloaded:
                    refused.add(part)
            elif action < 0.6 and parts:
                part = random.choice(parts)
                if not part.went and not part.errors and part not in refused:
                    gone.add(part)
                dispatcher.forget(part)
            else:
                random.choice(replicas).room += random.randint(0, 3)
                dispatcher.on_room()
            await asyncio.sleep(0)
            held = [p for p in parts if not p.went and not p.errors and p not in gone and p not in refused]
            assert dispatcher.num_held == sum(part.num_requests for part in held)
            for replica in replicas:
                waiting = [part for part in held if part.suits(replica)]
                assert not waiting or replica.room < max(part.num_requests for part in waiting)
            for part in parts:
                assert len(part.went) + len(part.errors) + (part in gone) + (part in refused) <= 1

    run(main)
