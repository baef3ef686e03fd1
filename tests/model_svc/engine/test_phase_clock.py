"""Every moment of the engine's loop belongs to one phase, with overlap and without."""

import itertools
import time
from dataclasses import replace

import pytest

from model_svc.engine.engine import Engine
from model_svc.engine.events import Inbox, StepResult
from model_svc.engine.limits import Limits
from model_svc.engine.mock_runner import MockRunner
from model_svc.engine.phase_clock import PHASES, PhaseClock
from model_svc.engine.sequence import Sequence
from model_svc.settings import EngineSettings
from tokenwire.sampling import NEUTRAL, StopParams


def engine(*, overlap: bool) -> Engine:
    runner = MockRunner(EngineSettings(engine="mock", mock_step_ms=5.0))
    return Engine(runner, Limits(4, 16), overlap=overlap)


def run(subject: Engine, num_tokens: int) -> list[StepResult]:
    sequence = Sequence(1, [1, 2, 3], 3, replace(NEUTRAL, seed=0), StopParams(num_tokens))
    subject.take(Inbox([sequence]))
    results: list[StepResult] = []
    while subject.has_work:
        results.append(subject.step())
        subject.phases.lap("publish")
    return results


def test_a_lap_gives_its_phase_what_passed_since_the_last() -> None:
    ticks = iter([10.0, 11.0, 13.0, 20.0, 20.5])
    clock = PhaseClock(now_s=lambda: next(ticks))
    clock.lap("schedule")
    clock.lap("forward")
    clock.restart()
    clock.lap("schedule")
    assert clock.seconds == dict.fromkeys(PHASES, 0.0) | {"schedule": 1.5, "forward": 2.0}


@pytest.mark.parametrize("overlap", [False, True])
def test_the_phases_of_a_run_add_up_to_its_time(overlap: bool) -> None:
    subject = engine(overlap=overlap)
    began_s = time.perf_counter()
    subject.phases.restart()
    results = run(subject, num_tokens=8)
    took_s = time.perf_counter() - began_s
    assert sum(subject.phases.seconds.values()) == pytest.approx(took_s, abs=0.002)
    assert 8 * 0.005 - 0.005 < subject.phases.seconds["wait"] < took_s
    assert results[-1].load.step == 8


@pytest.mark.parametrize("overlap", [False, True])
def test_sums_are_reported_with_each_step_in_the_order_of_phases(overlap: bool) -> None:
    subject = engine(overlap=overlap)
    numbers = itertools.count()
    subject.phases = subject.runner.phases = PhaseClock(now_s=lambda: float(next(numbers)))
    results = run(subject, num_tokens=3)
    for before, after in itertools.pairwise(result.phases_s for result in results):
        assert all(later >= earlier for earlier, later in zip(before, after, strict=True))
    last = dict(zip(PHASES, results[-1].phases_s, strict=True))
    assert last | {"publish": last["publish"] + 1} == subject.phases.seconds, "sending the result comes after it"
    assert last["sample"] == last["wait"] == 3.0 and last["schedule"] > 3.0
