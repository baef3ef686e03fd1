"""The contenders of the frontend benchmark in turn, under every load: figures by pace, contender and load.

A pace is the time of one step of the mock engine behind each of them; 0 is as fast as it goes. Writes no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.contenders import kinds, ours_edge, smg
from benchmarks.contenders.running import Running
from benchmarks.contenders.spec import Absent, Spec
from benchmarks.loadgen.failures import in_one_line
from benchmarks.loadgen.measure import Load, Target, run
from benchmarks.loadgen.work import Work

Say = Callable[[str], None]

OURS, OURS_SESSION, PEER, DIRECT = "tokenwire http", "tokenwire session", "smg http", "mock worker directly"
STACK = "tokenwire http, whole stack"
"""With our own model tier and its scheduler around the mock engine; all others have a mock worker behind them."""
MAX_STREAMS = 1024
"""That the mock engine computes at once: more than any load has."""
OPTIONS = {
    "engine": "mock", "prefill": "1000000000", "batch": str(MAX_STREAMS), "step_tokens": "131072",
}  # fmt: skip
"""Of the whole stack: a prompt takes no time, and every stream is in every step."""


FIRST_OF = {ours_edge.EDGE: OURS, smg.PEER: PEER, kinds.OURS: STACK}
"""What is absent when a kind of contender is."""


@dataclass(frozen=True)
class Pace:
    """How fast the mock engines go, and the loads that are measured at that."""

    step_ms: float
    loads: tuple[Load, ...]

    @property
    def label(self) -> str:
        return f"{self.step_ms:g} ms a token" if self.step_ms else "unpaced"


@dataclass
class Taker:
    """One contender at one pace: where it is reached, and its figures of each round."""

    name: str
    target: Target | None
    rounds: list[list[dict[str, Any]]] = field(default_factory=list)
    absent: str = ""
    """Why it is not measured, or no longer."""


def measure_pace(pace: Pace, work: Work, num_rounds: int, say: Say) -> tuple[list[Taker], list[dict[str, Any]]]:
    """Start everything, measure in turn, stop everything. Returns the contenders and what they were started with."""
    running: list[Running] = []
    takers: list[Taker] = []
    try:
        step_ms = f"{pace.step_ms:g}"
        for spec in (
            Spec(ours_edge.EDGE, {"step_ms": step_ms}),
            Spec(smg.PEER, {"step_ms": step_ms}),
            Spec(kinds.OURS, {**OPTIONS, "step_ms": step_ms}),
        ):
            say(f"{pace.label}: starting {spec.kind}")
            try:
                running.append(kinds.start(spec, say))
            except Absent as error:
                say(f"  {spec.kind} is left out: {error}")
                takers.append(Taker(FIRST_OF[spec.kind], None, absent=str(error)))
            else:
                takers += takers_of(running[-1])
        for number in range(num_rounds):
            for taker in takers if number % 2 == 0 else takers[::-1]:
                if taker.target is not None and not taker.absent:
                    say(f"{pace.label}, round {number + 1} of {num_rounds}: {taker.name}")
                    one_turn(taker, taker.target, pace, work, number, say)
    finally:
        for each in running:
            each.stop()
    about = [
        {"label": each.label, "versions": dict(each.versions), "settings": dict(each.settings)} for each in running
    ]
    return takers, about


def takers_of(running: Running) -> list[Taker]:
    """Everything that is measured of one stack."""
    target = running.target
    if "smg" in target.tiers:
        return [Taker(PEER, target)]
    if "model" in target.tiers:
        return [Taker(STACK, replace(target, api="chat", address=running.addresses["chat"]))]

    def at(api: str) -> Target:
        return replace(target, api=api, address=running.addresses[api])

    return [Taker(OURS, at("chat")), Taker(OURS_SESSION, at("session")), Taker(DIRECT, at("tokens"))]


def one_turn(taker: Taker, target: Target, pace: Pace, work: Work, number: int, say: Say) -> None:
    """One contender under all loads; the worker itself with one stream alone, for the latency below everything."""
    loads: Sequence[Load] = pace.loads
    form = work
    if taker.name == DIRECT:
        loads, form = [load for load in pace.loads if load.concurrency == 1], replace(work, form="ids")
    try:
        taker.rounds.append(run(target, form, loads, seed=number + 1, say="  "))
    except Exception as error:  # whatever a client raises: the others are still to be measured
        taker.absent = f"failed in round {number + 1}: {in_one_line(error)}"
        say(f"  {taker.name} {taker.absent}")
