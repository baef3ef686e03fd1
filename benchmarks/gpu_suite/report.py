"""How a section reports: one measurement at a time, so that what was measured survives whatever comes after."""

import json
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PREFIX = "RESULT "
"""Begins a line of a section's output that is a measurement; the rest of the line is JSON."""


@dataclass
class Report:
    """A section's measurements by name, and the time it has left."""

    seconds: float
    emit: Callable[[str], None] = print
    results: dict[str, Any] = field(default_factory=dict)
    started_s: float = field(default_factory=time.perf_counter)

    def add(self, name: str, **values: Any) -> None:
        """Enter a measurement and print it."""
        rounded = {key: sensible(value) for key, value in values.items()}
        self.results[name] = rounded
        self.emit(PREFIX + json.dumps({name: rounded}))

    def say(self, text: str) -> None:
        """A line of progress."""
        self.emit(f"  {time.perf_counter() - self.started_s:6.1f} s  {text}")

    @property
    def left_s(self) -> float:
        return self.seconds - (time.perf_counter() - self.started_s)

    @contextmanager
    def measuring(self, name: str, *, needs_s: float = 0.0, most_s: float = 0.0) -> Iterator[None]:
        """What is measured in this block is `name`. Where it fails the reason is entered, and the section goes on.

        It is not begun with less than `needs_s` left, and given up after `most_s` (0: never). Raises LeftOut.
        """
        if self.left_s < needs_s:
            self.add(name, left_out=f"{max(0.0, self.left_s):.0f} s were left, it needs {needs_s:.0f}")
            raise LeftOut(name)
        self.say(name)
        try:
            with interrupted_after(most_s):
                yield
        except LeftOut:
            raise
        except (Exception, TookTooLong) as error:
            self.add(name, failed=reason_of(error))
            raise LeftOut(name) from error


class TookTooLong(BaseException):
    """Not an Exception, so that no code on the way takes it for one of its own."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise TookTooLong in the block after so long; 0: never. Only the main thread can be interrupted."""

    def interrupt(*_: object) -> None:
        raise TookTooLong(f"given up after {seconds:.0f} s")

    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class LeftOut(Exception):
    """A measurement that was not made; the report says why. For `tolerating`."""


@contextmanager
def tolerating() -> Iterator[None]:
    """Go on after a measurement that was not made."""
    try:
        yield
    except LeftOut as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:300]


def sensible(value: Any) -> Any:
    """Numbers with four significant digits, through lists and dicts."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: sensible(each) for key, each in value.items()}
    return [sensible(each) for each in value] if isinstance(value, list | tuple) else value
