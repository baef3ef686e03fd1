"""Counts the work of parsers, so that tests can tell linear from quadratic cost without a clock."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

import tokenizer_svc.parsers.answer_parser as answer_parser
import tokenizer_svc.parsers.json_calls as json_calls
import tokenizer_svc.parsers.json_text as json_text
import tokenizer_svc.parsers.pythonic as pythonic
import tokenizer_svc.parsers.reader as reader
import tokenizer_svc.parsers.tool_formats as tool_formats

MODULES = (answer_parser, json_calls, json_text, pythonic, reader, tool_formats)


class Work:
    """What was done so far."""

    def __init__(self) -> None:
        self.num_chars = 0
        """Characters that patterns went over."""
        self.num_calls = 0
        """Functions called and generators resumed."""

    @property
    def total(self) -> int:
        return self.num_chars + self.num_calls


class _CountedPattern:
    def __init__(self, pattern: re.Pattern[str], work: Work) -> None:
        self._pattern = pattern
        self._work = work

    def search(self, text: str, start: int, end: int = sys.maxsize) -> re.Match[str] | None:
        found = self._pattern.search(text, start, end)
        self._work.num_chars += (found.end() if found is not None else min(end, len(text))) - start
        return found


@contextmanager
def counted_reading() -> Iterator[Work]:
    """Counts what parsers do that are made within."""
    work = Work()

    def counted(value: Any) -> Any:
        if isinstance(value, re.Pattern):
            return _CountedPattern(value, work)
        return {key: counted(one) for key, one in value.items()} if isinstance(value, dict) else value

    class CountedRe:
        escape = staticmethod(re.escape)

        @staticmethod
        def compile(pattern: str) -> _CountedPattern:
            return _CountedPattern(re.compile(pattern), work)

    def profile(_: FrameType, event: str, __: Any) -> None:
        work.num_calls += event == "call"

    with pytest.MonkeyPatch.context() as changed:
        for module in MODULES:
            for name, value in list(vars(module).items()):
                if not name.startswith("__") and isinstance(value, (re.Pattern, dict)):
                    changed.setattr(module, name, counted(value))
        changed.setattr(answer_parser, "re", CountedRe)
        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            yield work
        finally:
            sys.setprofile(before)
