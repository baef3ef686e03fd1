"""How far a run is: a line that is rewritten on a terminal, one line at the end elsewhere."""

import sys
import time
from types import TracebackType
from typing import TextIO

from benchmarks.loadgen.records import Record

REWRITE_S = 0.2


class Progress:
    """Counts ended requests of one run; call it with each."""

    def __init__(self, label: str, num_requests: int, out: TextIO | None = None) -> None:
        self._label = label
        self._num_requests = num_requests
        self._out = sys.stderr if out is None else out
        self._ended = self._failed = 0
        self._began_s = self._shown_s = time.perf_counter()

    def __call__(self, record: Record) -> None:
        self._ended += 1
        self._failed += bool(record.error)
        now_s = time.perf_counter()
        if self._out.isatty() and now_s - self._shown_s >= REWRITE_S:
            self._shown_s = now_s
            self._out.write(f"\r\033[K{self._line()}")
            self._out.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._out.write(("\r\033[K" if self._out.isatty() else "") + self._line() + "\n")
        self._out.flush()

    def _line(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        seconds = time.perf_counter() - self._began_s
        return f"  {self._label}: {self._ended}/{self._num_requests} requests{failed}, {seconds:.1f} s"
