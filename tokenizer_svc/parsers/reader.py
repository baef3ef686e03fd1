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
MAX_HELD_CHARS = 65_536
"""Most that is held back of a text: what is not certain by then is not what it seemed to become."""
MAX_REREAD_CHARS = 16_384
"""How much more may be read again than went by since; beyond that nothing is begun that may have to be read again."""
_NOT_SPACE = re.compile(r"[^ \t\r\n]")


class Malformed(Exception):
    """The text is not what it seemed to become. Nothing of it has been given out."""


class Reader:
    """What has come and was not given out, and how far it has been read."""

    def __init__(self) -> None:
        self.text = ""
        self.start = 0
        """Everything before it has been given out."""
        self.position = 0
        """Everything before it has been read."""
        self.ended = False
        self.before_wait: Callable[[], None] | None = None
        """Called before waiting, where what has been read can be given out at once. It may call `take`."""
        self._num_dropped = 0
        """How much of the answer stood before `text`."""
        self._paid_at = -MAX_REREAD_CHARS
        """Where in the answer as much has been read as was read again."""

    @property
    def end(self) -> int:
        """Where in `text` reading must stop for now."""
        return min(len(self.text), self.start + MAX_HELD_CHARS)

    @property
    def may_reread(self) -> bool:
        """Whether there may be begun here what perhaps must be read again."""
        return self.mark() > self._paid_at

    def push(self, text: str) -> None:
        """More has come. Places in `text` move; marks do not."""
        self.text = self.text[self.start :] + text
        self._num_dropped += self.start
        self.position -= self.start
        self.start = 0

    def take(self) -> str:
        """What has been read and not yet taken. It cannot be read again."""
        taken = self.text[self.start : self.position]
        self.start = self.position
        return taken

    def mark(self) -> int:
        """The place, counted from the answer's beginning: good across a wait, where a place in `text` is not."""
        return self._num_dropped + self.position

    def since(self, mark: int) -> str:
        """What has been read since then; nothing of it may have been taken."""
        return self.text[mark - self._num_dropped : self.position]

    def rewind(self, mark: int | None = None) -> None:
        """Go back there, or to what has not been taken: what lies between is read again, and counts as that."""
        num_read = self.position
        self.position = self.start if mark is None else mark - self._num_dropped
        self._paid_at = max(self._paid_at, self.mark() - MAX_REREAD_CHARS) + num_read - self.position

    def wait(self) -> Steps[bool]:
        """Pause until more may be read; False when that will not be: the text ended, or too much is held back."""
        before = self._num_dropped + self.end
        if self.before_wait is not None:
            self.before_wait()
        while self._num_dropped + self.end == before:
            if self.ended or self.end - self.start == MAX_HELD_CHARS:
                return False
            yield
        return True

    def peek(self) -> Steps[str]:
        """The next character; empty at the end."""
        if self.position >= self.end and not (yield from self.wait()):
            return ""
        return self.text[self.position]

    def skip_space(self) -> Steps[str]:
        """Read whitespace. The character that follows it; empty at the end."""
        while (found := _NOT_SPACE.search(self.text, self.position, self.end)) is None:
            self.position = self.end
            if not (yield from self.wait()):
                return ""
        self.position = found.start()
        return found.group()

    def follows(self, text: str) -> Steps[bool]:
        """Whether exactly this comes next. Reads nothing."""
        while self.end - self.position < len(text):
            if not text.startswith(self.text[self.position : self.end]) or not (yield from self.wait()):
                return False
        return self.text.startswith(text, self.position)

    def accept(self, text: str) -> Steps[bool]:
        """Read this if it comes next."""
        if not (yield from self.follows(text)):
            return False
        self.position += len(text)
        return True

    def accept_cut(self, text: str) -> bool:
        """Read what is there of this if the answer ended within it."""
        if not self.ended or not text.startswith(self.text[self.position :]):
            return False
        self.position = len(self.text)
        return True

    def expect(self, text: str) -> Steps[None]:
        """Read this. Raises Malformed when something else comes."""
        if not (yield from self.accept(text)):
            raise Malformed(f"expected {text!r}")

    def run(self, other: re.Pattern[str], most: int) -> Steps[str]:
        """Read characters up to the first that matches `other`. Raises Malformed for more than `most`."""
        mark = self.mark()
        while True:
            too_long = mark - self._num_dropped + most + 1
            end = min(self.end, too_long)
            found = other.search(self.text, self.position, end)
            self.position = end if found is None else found.start()
            if self.position == too_long:
                raise Malformed("too long")
            if found is not None or not (yield from self.wait()):
                return self.since(mark)
