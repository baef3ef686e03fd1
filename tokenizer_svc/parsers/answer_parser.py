"""Splits one answer into content, reasoning and tool calls, as it comes.

Reasoning is looked for where the answer begins and behind a block of reasoning or calls; calls where their opener
stands outside the reasoning, and bare ones where reasoning would be looked for. What is no call after all is content,
from its first character on. Whitespace next to a block belongs to the block. Every piece of the text ends up in exactly
one part, and what the parts say does not depend on how the text came in pieces.
"""

import re
from collections.abc import Iterable

from tokenizer_svc.parsers.parts import Kind, Part, Parts
from tokenizer_svc.parsers.reader import WHITESPACE, Malformed, Reader, Steps
from tokenizer_svc.parsers.reasoning import ReasoningTags
from tokenizer_svc.parsers.tool_formats import ToolFormat

MAX_SPACE_CHARS = 1024
"""Most whitespace before a block that belongs to it; what comes before that is shown."""


class AnswerParser:
    """One answer. Text goes through `push` once, then `flush`; neither raises."""

    def __init__(
        self,
        *,
        tools: ToolFormat | None = None,
        names: frozenset[str] = frozenset(),
        reasoning: ReasoningTags | None = None,
        begins_inside: bool = False,
        hidden: frozenset[str] = frozenset(),
        max_calls: int | None = None,
    ) -> None:
        """`names`: functions that may be called. `begins_inside`: the prompt has opened the reasoning already.

        `hidden`: markers that are special tokens: shown nowhere, even where they mark nothing. `max_calls`: the answer
        ends after so many calls.
        """
        self._tools = tools
        self._names = names
        self._tags = reasoning
        self._begins_inside = begins_inside
        self._hidden = hidden
        openers = tools.openers if tools is not None else ()
        self._outside = _Markers({*openers, *((reasoning.opening,) if reasoning is not None else ()), *hidden})
        self._inside = _Markers({reasoning.opening, reasoning.closing, *hidden}) if reasoning is not None else None
        self._reader = Reader()
        self._parts = Parts(max_calls)
        self._fresh = True
        """Nothing was shown since the beginning or the last block."""
        self._strip = False
        """Whitespace that comes now belongs to what came before."""
        self._not_bare_at = -1
        """Where in the answer a bare call was looked for and is none."""
        self._done = False
        self.in_reasoning = False
        """The text read so far ends within reasoning."""
        self._steps = self._read()
        self._resume()

    @property
    def finished(self) -> bool:
        """Whether as many calls are there as are wanted: what follows is nothing."""
        return self._done and self._parts.full

    def push(self, text: str) -> list[Part]:
        """More of the answer."""
        if self._done or not text:
            return []
        self._reader.push(text)
        self._resume()
        return self._parts.take()

    def flush(self) -> list[Part]:
        """The answer has ended: what was held back."""
        self._reader.ended = True
        self._resume()
        return self._parts.take()

    def _resume(self) -> None:
        if self._done:
            return
        try:
            next(self._steps)
        except StopIteration:
            self._done = True

    def _read(self) -> Steps[None]:
        if self._begins_inside:
            yield from self._read_reasoning()
        while (marker := (yield from self._read_content())) is not None:
            start, may_reread = self._reader.mark(), self._reader.may_reread
            self._reader.position += len(marker)
            if self._tags is not None and marker == self._tags.opening and self._fresh:
                self._parts.add(Kind.MARKUP, self._reader.take())
                yield from self._read_reasoning()
            elif self._tools is not None and may_reread and (marker in self._tools.openers or not marker):
                try:
                    yield from self._tools.read(self._reader, self._parts, self._names)
                except Malformed:
                    self._reader.rewind(start)
                    self._show_marker(marker)
                else:
                    self._fresh = self._strip = True
                    if self._parts.full:
                        return
            else:
                self._reader.position -= len(marker)
                self._show_marker(marker)

    def _read_content(self) -> Steps[str | None]:
        """Show content up to a marker, which is returned; "" where a bare call may begin, None at the end.

        The reader stands at the marker; whitespace before it has been read and not taken.
        """
        reader, bare = self._reader, self._tools.bare if self._tools is not None else ""
        while True:
            if bare and self._fresh:
                char = yield from reader.skip_space()
                self._show_much_space(Kind.TEXT)
                if char and char in bare and reader.mark() != self._not_bare_at:
                    return ""
                if not char and reader.position < len(reader.text):
                    continue
            marker = self._advance(self._outside, Kind.TEXT)
            if marker is not None:
                return marker
            if not (yield from reader.wait()):
                reader.position = len(reader.text)
                self._show(Kind.TEXT)
                return None

    def _read_reasoning(self) -> Steps[None]:
        """Show reasoning up to the closing tag, which is read, or the end."""
        assert self._inside is not None and self._tags is not None
        reader = self._reader
        self._fresh = self._strip = self.in_reasoning = True
        while True:
            marker = self._advance(self._inside, Kind.REASONING)
            if marker is None:
                if not (yield from reader.wait()):
                    reader.position = len(reader.text)
                    self._show(Kind.REASONING)
                    return
            elif marker == self._tags.closing or (marker == self._tags.opening and self._fresh):
                reader.position += len(marker)
                self._parts.add(Kind.MARKUP, reader.take())
                if marker == self._tags.closing:
                    self._fresh = self._strip = True
                    self.in_reasoning = False
                    return
            else:
                self._show_marker(marker, Kind.REASONING)

    def _advance(self, markers: "_Markers", kind: Kind) -> str | None:
        """Show what stands before the next marker, or what can be no part of one; whitespace at its end is kept.

        What was read and not taken is such whitespace. The marker, if it is there: the reader stands at it.
        """
        reader = self._reader
        place, marker = markers.find(reader.text, reader.position)
        shown = reader.text[reader.position : place].rstrip(WHITESPACE)
        if shown:
            reader.position += len(shown)
            self._show(kind)
        reader.position = place
        self._show_much_space(kind)
        return marker

    def _show_much_space(self, kind: Kind) -> None:
        """Show the beginning of whitespace that was read if there is more than may be kept."""
        reader = self._reader
        place = reader.position
        if place - reader.start > MAX_SPACE_CHARS:
            reader.position = place - MAX_SPACE_CHARS
            self._show(kind)
            reader.position = place

    def _show_marker(self, marker: str, kind: Kind = Kind.TEXT) -> None:
        """A marker that marks nothing: part of the text, or hidden. The empty one: no bare call begins here."""
        if not marker:
            self._not_bare_at = self._reader.mark()
        elif marker in self._hidden:
            self._show(kind)
            self._reader.position += len(marker)
            self._parts.add(Kind.MARKUP, self._reader.take())
        else:
            self._reader.position += len(marker)
            self._show(kind)

    def _show(self, kind: Kind) -> None:
        """Give out what has been read, without whitespace that belongs to what came before."""
        raw = self._reader.take()
        shown = raw.lstrip(WHITESPACE) if self._strip else raw
        self._parts.add(Kind.MARKUP, raw[: len(raw) - len(shown)])
        self._parts.add(kind, shown)
        if shown:
            self._strip = False
        if shown.strip(WHITESPACE):
            self._fresh = False


class _Markers:
    """Finds the first of several markers in a text."""

    def __init__(self, markers: Iterable[str]) -> None:
        self._markers = sorted(markers, key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, self._markers))) if self._markers else None
        self._longest = len(self._markers[0]) if self._markers else 0

    def find(self, text: str, start: int) -> tuple[int, str | None]:
        """Where the first marker behind `start` begins, and which it is.

        None: where one may be beginning, or the text's end.
        """
        if self._any is not None and (found := self._any.search(text, start)) is not None:
            return found.start(), found.group()
        for place in range(max(start, len(text) - self._longest + 1), len(text)):
            if any(marker.startswith(text[place:]) for marker in self._markers):
                return place, None
        return len(text), None
