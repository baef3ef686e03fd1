"""Finds stop strings in text that arrives in pieces, and holds back exactly what may still become one.

The match that *ends* first wins, as it would if the text came character by character and generation ended at the
first complete stop string; of those that end at the same character the longest, so that nothing of any is emitted. The
result therefore does not depend on how the text is cut into tokens, nor on the order of the strings.

The matcher is the automaton of Aho and Corasick ("Efficient string matching: an aid to bibliographic search", 1975):
one step per character, whatever the number of strings, and its depth is what must be held back. Knows nothing of
tokens.
"""

import re
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache


@dataclass(slots=True, eq=False)
class _Node:
    """The stop strings' beginnings, one node each: `depth` characters read."""

    depth: int
    children: "dict[str, _Node]" = field(default_factory=dict)
    fallback: "_Node | None" = None
    """The longest proper suffix of this beginning that is a beginning too; None at the root."""
    match: str | None = None
    """The longest stop string that ends here."""


@dataclass(frozen=True, slots=True)
class _Automaton:
    root: _Node
    first: re.Pattern[str]
    """Any character that begins a stop string."""


@lru_cache(maxsize=256)
def _automaton(stop_strings: tuple[str, ...]) -> _Automaton:
    """Built once per set of stop strings: clients repeat theirs."""
    root = _Node(0)
    for text in stop_strings:
        node = root
        for char in text:
            node = node.children.setdefault(char, _Node(node.depth + 1))
        node.match = text
    queue = deque([root])
    while queue:
        node = queue.popleft()
        for char, child in node.children.items():
            fallback = node.fallback
            while fallback is not None and char not in fallback.children:
                fallback = fallback.fallback
            child.fallback = fallback.children[char] if fallback is not None else root
            child.match = child.match or child.fallback.match
            queue.append(child)
    first = "".join(re.escape(char) for char in root.children)
    return _Automaton(root, re.compile(f"[{first}]"))


class StopStringMatcher:
    """The stop strings of one sequence. Text goes through `push` once; after a match nothing more may be pushed."""

    def __init__(self, stop_strings: tuple[str, ...], *, include_stop_string: bool = False) -> None:
        """`stop_strings`: at least one, none empty. `include_stop_string`: the match itself belongs to the text."""
        automaton = _automaton(stop_strings)
        self._root, self._first = automaton.root, automaton.first
        self._node = automaton.root
        self._include = include_stop_string
        self._held = ""
        self.num_holds = 0
        """How often text was held back after a push."""

    @property
    def held_back(self) -> str:
        """Text seen and not yet emitted, because it may be the beginning of a stop string."""
        return self._held

    def push(self, text: str) -> tuple[str, str | None]:
        """More text. Returns what may be emitted now, and the stop string met, if any; what follows it is dropped."""
        node, root = self._node, self._root
        position, end = 0, len(text)
        while position < end:
            if node is root:
                candidate = self._first.search(text, position)
                if candidate is None:
                    break
                position = candidate.start()
            char = text[position]
            while char not in node.children and node.fallback is not None:
                node = node.fallback
            node = node.children.get(char, root)
            position += 1
            if node.match is not None:
                return self._matched(text[:position], node.match)
        self._node = node
        if self._include:
            return text, None
        seen = self._held + text
        cut = len(seen) - node.depth
        self._held = seen[cut:]
        if self._held:
            self.num_holds += 1
        return seen[:cut], None

    def flush(self) -> str:
        """The text has ended without a match: what was held back after all."""
        held, self._held, self._node = self._held, "", self._root
        return held

    def _matched(self, text: str, stop_string: str) -> tuple[str, str]:
        seen, self._held = self._held + text, ""
        return (seen if self._include else seen[: len(seen) - len(stop_string)]), stop_string
