import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.fakes.replica import FakeReplica
from tokenwire.errors import FailedPrecondition
from tokenwire.routing.replica_set import ReplicaSet


@dataclass(eq=False)
class Owned(FakeReplica):
    leaving: bool = False
    num_open: int = 0
    calls: list[str] = field(default_factory=list)
    closes: asyncio.Event | None = None

    def start(self) -> None:
        self.calls.append("start")

    async def close(self) -> None:
        self.calls.append("close")
        if self.closes is not None:
            await self.closes.wait()
        self.calls.append("closed")


class Case:
    def __init__(self, num_each: int = 1) -> None:
        self.made: list[Owned] = []
        self.changes = 0
        self.refused: set[str] = set()
        """Addresses of which none can be made."""
        self.set = ReplicaSet(self._make, self._on_change, num_each=num_each)

    def _make(self, address: str) -> Owned:
        if address in self.refused:
            raise FailedPrecondition("the certificate has no key")
        self.made.append(Owned(address))
        return self.made[-1]

    def _on_change(self) -> None:
        self.changes += 1

    @property
    def serving(self) -> list[str]:
        return [replica.target for replica in self.set.serving]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


def test_replicas_come_and_go_without_touching_the_others() -> None:
    async def main() -> None:
        case = Case()
        case.set.update(["a", "b"])
        a, b = case.made
        case.set.update(["b", "c"])
        assert case.serving == ["b", "c"] and case.changes == 2
        assert case.set.serving[0] is b and b.calls == ["start"] and not b.leaving
        assert a.leaving
        await until(lambda: a.calls == ["start", "close", "closed"])
        assert case.set.all == case.set.serving
        await case.set.close()
        assert [replica.calls for replica in case.made] == [["start", "close", "closed"]] * 3

    asyncio.run(main())


def test_one_that_is_let_go_runs_out_before_it_is_closed() -> None:
    async def main() -> None:
        case = Case()
        case.set.update(["a"])
        (a,) = case.made
        a.num_open = 2
        case.set.update([])
        await asyncio.sleep(0.12)
        assert a.calls == ["start"] and case.set.all == (a,) and case.set.serving == ()
        a.num_open = 0
        await until(lambda: "closed" in a.calls)
        assert case.set.all == ()
        await case.set.close()

    asyncio.run(main())


def test_one_that_is_found_again_while_it_runs_out_goes_on() -> None:
    async def main() -> None:
        case = Case()
        case.set.update(["a"])
        (a,) = case.made
        a.num_open = 1
        for _ in range(3):
            case.set.update([])
            await asyncio.sleep(0)
            case.set.update(["a"])
            assert case.set.serving == (a,) and not a.leaving
        a.num_open = 0
        await asyncio.sleep(0.12)
        assert a.calls == ["start"] and case.made == [a]
        case.set.update([])
        await until(lambda: "closed" in a.calls)
        assert a.calls.count("close") == 1
        case.set.update(["a"])
        assert case.made[1:] and case.set.serving == (case.made[1],), "what was closed is made anew"
        await case.set.close()

    asyncio.run(main())


def test_closing_waits_for_those_that_are_being_closed_and_cuts_those_that_run_out() -> None:
    async def main() -> None:
        case = Case()
        case.set.update(["a", "b"])
        a, b = case.made
        a.closes, b.num_open = asyncio.Event(), 5
        case.set.update([])
        await until(lambda: "close" in a.calls)
        closing = asyncio.ensure_future(case.set.close())
        await until(lambda: "closed" in b.calls)
        await asyncio.sleep(0.1)
        assert not closing.done()
        a.closes.set()
        await closing
        assert a.calls == ["start", "close", "closed"]

    asyncio.run(main())


def test_several_at_each_address_come_and_go_together() -> None:
    async def main() -> None:
        case = Case(num_each=2)
        case.set.update(["a", "b"])
        assert case.serving == ["a", "b", "a", "b"] and len(set(case.set.serving)) == 4
        kept = [replica for replica in case.set.serving if replica.target == "b"]
        case.set.update(["b"])
        assert list(case.set.serving) == kept
        await until(lambda: sum("closed" in replica.calls for replica in case.made) == 2)
        assert all(replica.target == "a" for replica in case.made if "closed" in replica.calls)
        await case.set.close()

    asyncio.run(main())


def test_an_update_of_which_one_cannot_be_made_changes_nothing() -> None:
    async def main() -> None:
        case = Case()
        case.set.update(["a", "b"])
        a, b = case.made
        case.refused = {"d"}
        with pytest.raises(FailedPrecondition):
            case.set.update(["b", "c", "d"])
        assert case.set.all == (a, b) and case.changes == 1 and not a.leaving
        c = case.made[2]
        await until(lambda: c.calls == ["close", "closed"])
        case.refused = set()
        case.set.update(["b", "c", "d"])
        assert case.serving == ["b", "c", "d"] and case.set.serving[0] is b and c not in case.set.serving
        await until(lambda: "closed" in a.calls)
        await case.set.close()

    asyncio.run(main())
