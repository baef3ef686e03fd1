from dataclasses import dataclass
from typing import Any

import pytest

from tokenizer_svc.router import NoneAllowed, Router, RoutingQuery
from tokenwire.errors import Unavailable


@dataclass(eq=False)
class FakeReplica:
    target: str
    load: float = 0.0
    ready: bool = True
    max_context_tokens: int = 0
    vocab_size: int = 0

    def problem(self) -> str:
        return "on fire"

    def submit(self, submission: Any, receivers: Any) -> Any:
        raise AssertionError("the router submits nothing")


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
