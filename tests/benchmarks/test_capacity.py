"""The benchmark of capacity: its ramp, its page, what is held, and the way back, over a small stack."""

import asyncio
from typing import Any

import pytest

from benchmarks import capacity
from benchmarks.capacity_suite import held, ramp
from benchmarks.capacity_suite.holders import Streams
from benchmarks.overload import Seen


def test_the_ramp_grows_from_one_share_of_the_capacity_to_the_other() -> None:
    due_s = list(ramp.ramp_arrivals(100.0, 20.0))
    assert ramp.rate_at(100.0, 0.0, 20.0) == 50.0 and ramp.rate_at(100.0, 20.0, 20.0) == 300.0
    assert due_s == sorted(due_s) and due_s[-1] < 20.0
    first, last = sum(at_s < 5 for at_s in due_s), sum(at_s >= 15 for at_s in due_s)
    assert 300 < first < 500 and 1200 < last < 1550


def test_requests_are_sent_until_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(pool: Any, seen: Seen) -> None:
        (seen.refused_s if len(seen.served_at_s) == 3 else seen.served_at_s).append(0.0)

    monkeypatch.setattr(ramp, "ask", ask)

    async def main() -> None:
        seen = Seen()
        pool: Any = None
        left = await ramp.send(pool, seen, [0.01 * n for n in range(50)], lambda: bool(seen.refused_s))
        assert len(seen.served_at_s) == 3 and len(seen.refused_s) == 1 and not left

    asyncio.run(main())


class Ending(Streams):
    """Every third ends at once."""

    num_asked = 0

    async def _ended(self) -> str:
        self.num_asked += 1
        if self.num_asked % 3:
            await asyncio.Event().wait()
        return "status 429"


def test_streams_that_ended_are_not_held_and_say_why() -> None:
    async def main() -> None:
        holder = Ending()
        await holder.grow(6)
        await asyncio.sleep(0)
        row = held.row("streams", 6, holder, {"gateway": 1024}, {"gateway": 9 * 1024})
        assert row == {
            "kind": "streams",
            "asked": 6,
            "held": 4,
            "kib_each": {"gateway": 2.0},
            "lost": {"status 429": 2},
        }
        await holder.close()

    asyncio.run(main())


def test_nothing_held_has_no_memory_each() -> None:
    class Nothing(Streams):
        pass

    assert held.row("streams", 1, Nothing(), {"gateway": 1}, {"gateway": 2})["kib_each"] == {"gateway": None}


def test_the_page_tells_what_is_held_and_lost() -> None:
    rows = [
        {"kind": "streams, HTTP", "asked": 6, "held": 4, "kib_each": dict.fromkeys(held.TIERS, 2.0),
         "lost": {"status 429": 2}}
    ]  # fmt: skip
    record = {"quiet": True, "ramp_s": 8.0, "overload_s": 3.0, "held": rows, "rates": {"first_refusal_share": 1.2}}
    page = capacity.text_of(record)
    assert "| streams, HTTP | 6     | 4    |" in page and "| 2 status 429 |" in page
    assert "| first refusal share | 1.2 |" in page


@pytest.mark.extended
@pytest.mark.model
def test_a_small_run_holds_what_it_asks_for_and_finds_the_first_refusal() -> None:
    record = capacity.run(capacity.Size((5, 10), (5, 10), 8.0, 2.0))
    assert [(row["asked"], row["held"]) for row in record["held"]] == [(5, 5), (10, 10)] * 4
    assert record["rates"]["other_outcomes"] == {} and record["rates"]["refused_in_the_overload"]
    assert capacity.text_of(record)
