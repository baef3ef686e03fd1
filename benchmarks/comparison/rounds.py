"""Contenders side by side: started once, then loaded in turn, round after round. Writes no file.

All stay up; one at a time gets load. What the idle ones use meanwhile is measured and told.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.contenders import kinds
from benchmarks.contenders.running import Running
from benchmarks.contenders.spec import Absent, Spec
from benchmarks.loadgen.failures import in_one_line
from benchmarks.loadgen.measure import Load, run
from benchmarks.loadgen.processes import TierMeter
from benchmarks.loadgen.work import Work

Say = Callable[[str], None]


@dataclass
class Turns:
    """One contender: how it started, and its figures of each round."""

    spec: Spec
    running: Running | None = None
    absent: str = ""
    """Why it is not measured, or no longer."""
    rounds: list[list[dict[str, Any]]] = field(default_factory=list)
    idle_share: list[float] = field(default_factory=list)
    """Of one core, while others were loaded."""

    @property
    def label(self) -> str:
        return self.spec.label


def take_turns(specs: Sequence[Spec], work: Work, loads: Sequence[Load], num_rounds: int, say: Say) -> list[Turns]:
    """Start all, measure them in turn, stop all. A contender that fails keeps its reason; the others go on.

    Each round asks for other prompts, the same of every contender. Raises ValueError for what cannot be asked at all.
    """
    turns = [Turns(spec) for spec in specs]
    try:
        for each in turns:
            start(each, say)
        for number in range(num_rounds):
            order = turns if number % 2 == 0 else turns[::-1]
            for each in order:
                if each.running is not None and not each.absent:
                    one_turn(each, turns, replace(work, form=form_of(specs)), loads, number, num_rounds, say)
    finally:
        for each in turns:
            if each.running is not None:
                each.running.stop()
    return turns


def start(turns: Turns, say: Say) -> None:
    """Start a contender, or note why it is absent."""
    say(f"starting {turns.label}")
    try:
        turns.running = kinds.start(turns.spec, say)
    except Absent as error:
        turns.absent = str(error)
        say(f"  {turns.label} is left out: {error}")
    else:
        running = turns.running
        say(f"  {turns.label} answers after {running.startup_s:.1f} s: {running.answer!r}")


def one_turn(
    turns: Turns, everyone: Sequence[Turns], work: Work, loads: Sequence[Load], number: int, num_rounds: int, say: Say
) -> None:
    """One contender under all loads of its, the others idle."""
    assert turns.running is not None
    mine = [load for load in loads if load.concurrency == 1 or turns.spec.kind not in kinds.ONE_AT_A_TIME]
    idle = {
        f"{each.label} {tier}": pid
        for each in everyone
        if each is not turns and each.running is not None
        for tier, pid in each.running.target.tiers.items()
    }
    say(f"round {number + 1} of {num_rounds}: {turns.label}")
    began_s = time.perf_counter()
    try:
        with TierMeter(idle) as meter:
            turns.rounds.append(run(turns.running.target, work, mine, seed=number + 1))
    except Exception as error:  # whatever a client raises: the others are still to be measured
        process = turns.running.process
        died = f"; it ended: {process.last_words()}" if process is not None and process.status is not None else ""
        turns.absent = f"failed in round {number + 1}: {in_one_line(error)}{died}"
        say(f"  {turns.label} {turns.absent}")
        return
    wall_s = time.perf_counter() - began_s
    used = meter.figures(0)
    for each in everyone:
        share = [figures["cpu_s"] for name, figures in used.items() if name.startswith(f"{each.label} ")]
        if share:
            each.idle_share.append(round(sum(share) / wall_s, 4))


def form_of(specs: Sequence[Spec]) -> Any:
    """Token ids, unless one of the contenders takes texts alone: then all get texts."""
    return "text" if any(spec.kind in kinds.TEXT_ONLY for spec in specs) else "ids"
