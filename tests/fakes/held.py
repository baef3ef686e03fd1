"""What there is of some kinds of objects, so that tests see what has not been let go."""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


def held(kinds: tuple[type, ...]) -> Counter[str]:
    """By name. Messages are not tracked themselves, so whatever refers to one is asked."""
    found = {
        id(one): type(one).__name__
        for each in gc.get_objects()
        for one in (each, *gc.get_referents(each))
        if type(one) in kinds
    }
    return Counter(found.values())


@contextmanager
def collecting_nothing(*, whole_process: bool = False) -> Iterator[None]:
    """Nothing is let go within but by counting references, and `held` sees what has been made within.

    `whole_process`: it sees everything, which takes seconds.
    """
    gc.collect()
    if whole_process:
        gc.unfreeze()
    else:
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if whole_process:
            gc.collect()
            gc.freeze()
