"""What processes hold is told also while some of them end."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from benchmarks.loadgen.processes import tree
from tests.chaos.processes import held
from tests.waiting import wait_for

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; sys.stdin.read()'])"


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process with a child, both of which wait for their input to end."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE) as process:
        wait_for(lambda: len(tree(process.pid)) == 2, 20)
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ends_within(monkeypatch: pytest.MonkeyPatch, name: str, ending: int) -> None:
    """A process is gone by the time it is asked this."""
    ask = getattr(psutil.Process, name)

    def asked(process: psutil.Process, *arguments: Any) -> Any:
        if process.pid == ending:
            raise psutil.NoSuchProcess(ending)
        return ask(process, *arguments)

    monkeypatch.setattr(psutil.Process, name, asked)


def test_a_child_counts(parent: subprocess.Popen[bytes]) -> None:
    now = held(parent.pid)
    assert now.processes == now.threads == 2 and now.descriptors >= 6 and now.rss_bytes > 1e6


@pytest.mark.parametrize("name", ["children", "num_fds", "num_threads", "memory_info"])
def test_a_child_that_ends_meanwhile_is_left_out(
    parent: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _, child = tree(parent.pid)
    ends_within(monkeypatch, name, child.pid)
    assert held(parent.pid).processes == 1


def test_a_process_that_is_gone_is_said_to_be() -> None:
    with pytest.raises(psutil.NoSuchProcess):
        held(999_999_999)
    assert held(os.getpid()).descriptors > 0
