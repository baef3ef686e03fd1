"""Programs under test hear Ctrl-C, also where the tests themselves run in the background of a shell that ignores it."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def sigint_is_heard() -> Iterator[None]:
    """A signal that is ignored stays so in the processes that are started; one with a handler does not."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
