from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.replica import FakeClock, FakeReplica
from tokenizer_svc.router import LeastLoad, NoneAllowed, Pick, PickReason, Router, RoutingQuery
from tokenwire.errors import Unavailable
from tokenwire.routing.breaker import Breaker


def test_the_least_loaded_ready_replica_is_picked() -> None:
    a, b, c = FakeReplica("a", 2.0), FakeReplica("b", 0.5), FakeReplica("c", 0.0, ready=False)
    router = Router([a, b, c])
    assert router.pick() is b
    assert router.pick(exclude=[b]) is a
    assert router.num_ready == 2


def test_equal_loads_are_spread() -> None:
    replicas = [FakeReplica(str(n)) for n in range(3)]
    router = Router(replicas)
    assert {router.pick().target for _ in range(200)} == {"0", "1", "2"}


def test_when_none_is_ready_the_reason_of_each_is_given() -> None:
    router = Router([FakeReplica("a:1", ready=False), FakeReplica("b:2", ready=False)])
    with pytest.raises(Unavailable) as caught:
        router.pick()
    assert caught.value.reason == "MODEL_TIER_DOWN"
    assert "a:1: on fire; b:2: on fire" in str(caught.value)


def test_the_only_one_is_not_picked_twice() -> None:
    replica = FakeReplica("a")
    with pytest.raises(Unavailable, match="one alone"):
        Router([replica]).pick(exclude=[replica])


def test_replicas_that_are_not_allowed_are_passed_over() -> None:
    a, b, c = FakeReplica("a", 0.1), FakeReplica("b", 0.5), FakeReplica("c", 0.9)
    router = Router([a, b, c])
    query = RoutingQuery([1, 2], tenant="t")
    assert router.pick(query, allowed=lambda replica: replica is not a) is b
    assert router.pick(query, exclude=[b], allowed=lambda replica: replica is not a) is c
    assert router.choose(query, [b, c]) is b
    with pytest.raises(NoneAllowed, match="none of the 3") as caught:
        router.pick(query, allowed=lambda replica: False)
    assert caught.value.reason == "NO_MODEL_TIER_ALLOWED"


def test_with_none_ready_it_does_not_matter_what_is_allowed() -> None:
    with pytest.raises(Unavailable) as caught:
        Router([FakeReplica("a", ready=False)]).pick(allowed=lambda replica: False)
    assert not isinstance(caught.value, NoneAllowed) and caught.value.reason == "MODEL_TIER_DOWN"


def test_what_was_picked_and_why_is_told() -> None:
    told: list[Pick] = []
    a, b = FakeReplica("a"), FakeReplica("b", 1.0)
    router = Router([a, b], LeastLoad(), on_pick=told.append)
    router.pick()
    router.pick(exclude=[a])
    assert router.any_ready() is a
    assert told == [Pick(a, PickReason.LEAST_LOAD), Pick(b, PickReason.ONLY_ONE)]


def test_when_discovery_has_found_nothing_that_is_the_reason() -> None:
    for problem, said in (("dns:m:1: no such name", "dns:m:1: no such name"), ("", "none is known")):
        with pytest.raises(Unavailable, match=said):
            Router([], discovery_problem=lambda problem=problem: problem).any_ready()


@dataclass
class Failing:
    """Replicas of which some have failed, the later ones more lately."""

    clock: FakeClock = field(default_factory=FakeClock)

    def replicas(self, count: int, num_failing: int) -> list[FakeReplica]:
        made = [FakeReplica(str(n), breaker=Breaker(1, clock=self.clock)) for n in range(count)]
        for replica in made[:num_failing]:
            replica.breaker.on_failure("bad")
            self.clock.now_s += 0.01
        return made


def test_failing_replicas_are_passed_over_until_their_pause_is_over() -> None:
    failing = Failing()
    replicas = failing.replicas(4, 2)
    router = Router(replicas)
    assert router.ready_replicas() == replicas[2:] and router.num_ready == 2
    failing.clock.now_s += 0.985
    assert router.ready_replicas() == [replicas[0], *replicas[2:]], "the first may be tried"
    replicas[0].breaker.on_submit()
    assert router.ready_replicas() == replicas[2:], "by one request"
    for _ in range(10):
        assert router.choose(None, [replicas[0], replicas[3]]) is replicas[3], (
            "also where several were looked up at once"
        )
    assert router.choose(None, replicas[:1]) is replicas[0]


@pytest.mark.parametrize(
    ("count", "share", "most"), [(1, 1, 0), (2, 0.5, 1), (3, 0.5, 2), (4, 0.5, 2), (3, 1, 2), (3, 0, 0)]
)
def test_no_more_than_a_share_is_passed_over_and_never_all(count: int, share: float, most: int) -> None:
    replicas = Failing().replicas(count, count)
    left = Router(replicas, max_ejected_share=share).ready_replicas()
    assert left == replicas[: count - most], "those whose pause ends first are used"


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=8), st.floats(0, 1))
def test_whoever_can_be_used_some_are(states: list[tuple[bool, bool, bool]], share: float) -> None:
    clock = FakeClock()
    replicas, exclude = [], []
    for number, (ready, fails, excluded) in enumerate(states):
        replica = FakeReplica(str(number), ready=ready, breaker=Breaker(1, clock=clock))
        if fails:
            replica.breaker.on_failure("bad")
        replicas.append(replica)
        if excluded:
            exclude.append(replica)
    found = Router(replicas, max_ejected_share=share).ready_replicas(exclude)
    usable = [replica for replica in replicas if replica.ready and replica not in exclude]
    assert bool(found) == bool(usable) and set(found) <= set(usable)
    assert {replica for replica in usable if replica.breaker.admits} <= set(found)
