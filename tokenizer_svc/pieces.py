"""Many texts, or sequences of ids, given to the tokenizer piece by piece.

Others come between the pieces, and whoever leaves takes back what has not begun. A text is never cut: its ids could be
others then. Does not know what becomes of the texts.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from functools import partial
from typing import TypeVar

from tokenizer_svc.call_thread import CallThread
from tokenizer_svc.encoder import INLINE_CHARS, MAX_BATCH_CHARS

Item = TypeVar("Item", bound=Sized)
Made = TypeVar("Made")


async def in_pieces(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], list[Made]],
    thread: CallThread,
    *,
    inline_size: int = INLINE_CHARS,
) -> list[Made]:
    """What `work` makes of each, in order; it is given some of them at a time.

    `inline_size`: a piece of up to so many characters, or ids, is done on the event loop; 0: none is. Raises what
    `work` raises, and Overloaded.
    """
    found: list[Made] = []
    for piece in pieces(items):
        short = inline_size and sum(map(len, piece)) <= inline_size
        found += work(piece) if short else await thread.run(partial(work, piece))
    return found


def pieces(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Runs of some tens of thousands of characters, or ids; what is longer stands alone."""
    start, size = 0, 0
    for index, item in enumerate(items):
        if index > start and size + len(item) > MAX_BATCH_CHARS:
            yield items[start:index]
            start, size = index, 0
        size += len(item)
    if start < len(items):
        yield items[start:]
