"""What is split from an answer's text: reasoning and tool calls, whole or in pieces. Does not know who splits it."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function, or the next piece of one."""

    id: str = ""
    """Identifies it in the conversation; in pieces, with the first one."""
    name: str = ""
    """The function; in pieces, with the first one."""
    arguments: str = ""
    """JSON text, as the model wrote it; in pieces, what is new of it."""
    index: int = 0
    """Which call of its message this is."""


@dataclass(slots=True)
class Parsed:
    """What came together of one answer. Belongs to whoever it was handed to, who may extend it."""

    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    """Pieces, at most one of each call, in order."""

    def add_call(self, piece: ToolCall) -> None:
        """Append a piece: to the one before if that is of the same call."""
        last = self.tool_calls[-1] if self.tool_calls else None
        if last is None or last.index != piece.index:
            self.tool_calls.append(piece)
        else:
            self.tool_calls[-1] = replace(last, arguments=last.arguments + piece.arguments)

    def extend(self, more: "Parsed") -> None:
        """Append what came later."""
        self.reasoning += more.reasoning
        for piece in more.tool_calls:
            self.add_call(piece)

    @property
    def num_chars(self) -> int:
        """About how much there is to send."""
        calls = (len(call.id) + len(call.name) + len(call.arguments) for call in self.tool_calls)
        return len(self.reasoning) + sum(calls)


def joined_parsed(waiting: Parsed | None, more: Parsed) -> Parsed:
    """What waits, extended by what came later."""
    if waiting is None:
        return more
    waiting.extend(more)
    return waiting
