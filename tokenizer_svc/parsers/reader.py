"""A text that arrives in pieces, read by generators that yield where they must know more.

A reader that decides by what it has read, and waits where that is not there yet, finds the same in every chunking.
Knows no format.
"""

import re
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Reading that pauses for more text, and returns a T in the end."""

WHITESPACE = " \t\r\n"
_NOT_SPACE = re.compile(r"[^ \t\r\n]")


class Malformed(Exception):
    """The text is not what it seemed to become. Nothing of it has been given out."""


class Reader:
    """What has come and was not given out, and how far it has been read."""

    def __init__(self) -> None:
        self.text = ""
        self.position = 0
        """Everything before it has been read."""
        self.ended = False
        self.before_wait: Callable[[], None] | None = None
        """Called before waiting, where what has been read can be given out at once. It may call `take`, so no place in
        the text but `position` is remembered across a wait."""

    def take(self) -> str:
        """What has been read and not yet taken. It cannot be read again."""
        taken, self.text, self.position = self.text[: self.position], self.text[self.position :], 0
        return taken

    def wait(self) -> Steps[bool]:
        """Pause until there is more text; False when there will be none."""
        if self.before_wait is not None:
            self.before_wait()
        size = len(self.text)
        while len(self.text) == size:
            if self.ended:
                return False
            yield
        return True

    def peek(self) -> Steps[str]:
        """The next character; empty at the end."""
        if self.position >= len(self.text):
            yield from self.wait()
        return self.text[self.position : self.position + 1]

    def skip_space(self) -> Steps[str]:
        """Read whitespace. The character that follows it; empty at the end."""
        while (found := _NOT_SPACE.search(self.text, self.position)) is None:
            self.position = len(self.text)
            if not (yield from self.wait()):
                return ""
        self.position = found.start()
        return found.group()

    def follows(self, text: str) -> Steps[bool]:
        """Whether exactly this comes next. Reads nothing."""
        while len(self.text) - self.position < len(text):
            if not text.startswith(self.text[self.position :]) or not (yield from self.wait()):
                return False
        return self.text.startswith(text, self.position)

    def accept(self, text: str) -> Steps[bool]:
        """Read this if it comes next."""
        if not (yield from self.follows(text)):
            return False
        self.position += len(text)
        return True

    def expect(self, text: str) -> Steps[None]:
        """Read this. Raises Malformed when something else comes."""
        if not (yield from self.accept(text)):
            raise Malformed(f"expected {text!r}")

    def run(self, other: re.Pattern[str], most: int) -> Steps[str]:
        """Read characters up to the first that matches `other`. Raises Malformed for more than `most`."""
        start = self.position
        while (found := other.search(self.text, self.position)) is None:
            self.position = len(self.text)
            if self.position - start > most or not (yield from self.wait()):
                break
        else:
            self.position = found.start()
        if self.position - start > most:
            raise Malformed("too long")
        return self.text[start : self.position]
