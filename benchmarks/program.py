"""What every benchmark's program does alike: how it ends when it is told to, and what it refuses before it measures.

Knows no benchmark.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

from benchmarks.comparison.results import RESULTS

STOPPED = 130
"""Exit status after Ctrl-C: 128 and the number of SIGINT."""


def as_program(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Let SIGTERM and Ctrl-C unwind the stack of `main`, so that no server is left behind; Ctrl-C shows no traceback.

    After Ctrl-C the result is 130, after SIGTERM the process exits with 143.
    """

    @wraps(main)
    def ended_well(argv: Sequence[str] | None = None) -> int:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr, flush=True)
            return STOPPED

    return ended_well


def one_or_more(text: str) -> int:
    """A count, as argparse reads it. Raises ArgumentTypeError below 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more")
    return int(text)


def refuse_unwritable(parser: argparse.ArgumentParser, out: Path | None) -> None:
    """End the program in one line, with status 2, when results could not be written to `out`.

    Makes the folder (benchmarks/results where none is given) and writes a file there that is gone at once.
    """
    folder = out or RESULTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        parser.exit(2, f"{parser.prog}: --out {folder}: results cannot be written there: {error.strerror}\n")
