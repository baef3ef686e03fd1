"""The event loop that all blocking sessions of a process share."""

import asyncio
import subprocess
import sys
import threading

import pytest

from tokenwire.client import Client
from tokenwire.client.loop_thread import loop_thread

FORKED = """
import asyncio, os
from tokenwire.client import Client
from tokenwire.client.loop_thread import loop_thread
from tokenwire.errors import FailedPrecondition

inherited = loop_thread()
with Client("127.0.0.1:1") as client, client.session() as session:
    pid = os.fork()
    if pid == 0:
        try:
            session.submit("a")
        except FailedPrecondition as error:
            assert error.reason == "FORKED", error
        else:
            raise AssertionError("it was submitted")
        session.close()
        inherited.soon(lambda: os._exit(3))
        assert loop_thread() is not inherited
        assert loop_thread().run(asyncio.sleep(0, "of its own")) == "of its own"
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert loop_thread() is inherited and inherited.run(asyncio.sleep(0, 5)) == 5
print("both went on")
"""


def test_there_is_one_and_sessions_leave_it_running() -> None:
    for _ in range(3):
        with Client("127.0.0.1:1") as client, client.session(), client.session():
            assert [thread.name for thread in threading.enumerate()].count("tokenwire-sessions") == 1
    assert loop_thread().run(asyncio.sleep(0, 5)) == 5


def test_what_is_raised_comes_out_and_who_stops_waiting_cancels() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop_thread().run(broken())


def test_a_process_that_was_forked_has_its_own() -> None:
    run = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "both went on"), run.stderr
