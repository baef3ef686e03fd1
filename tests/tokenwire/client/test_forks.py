"""What a forked process can do with the client, by what its parent did before. The forks are real."""

import os
import subprocess
import sys

import pytest

from tests.fakes.background import in_background
from tests.fakes.live_gateway import gateway_over_fake

CHILDREN = """
import asyncio, gc, multiprocessing, os, signal, sys
from tokenwire.client import AsyncClient, Client
from tokenwire.errors import FailedPrecondition

TARGET = sys.argv[1]

def ask(client=None):
    with client or Client(TARGET) as asked:
        return asked.generate("a b").text()

def ask_on_session():
    with Client(TARGET) as client, client.session() as session:
        return session.submit("a b").text()

def ask_with_asyncio():
    async def main():
        async with AsyncClient(TARGET) as client:
            return await client.generate("a b").text()
    return asyncio.run(main())

def in_children(action, count=4):
    def main():
        signal.alarm(60)
        action()
    children = [multiprocessing.get_context("fork").Process(target=main) for _ in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    pid = os.fork()
    if pid == 0:
        main()
        sys.exit()
    ends = [child.exitcode for child in children] + [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
    assert ends == [0] * (count + 1), ends

def answers():
    assert ask() == ask_on_session() == ask_with_asyncio() == "a b"

def refused(action):
    try:
        action()
    except FailedPrecondition as error:
        assert error.reason == "FORKED" and "spawn" in error.message, error
    else:
        raise AssertionError("it was not refused")

def all_are_refused():
    for action in (ask, ask_on_session, ask_with_asyncio):
        refused(action)
"""

BEFORE_ANY_USE = """
in_children(answers)
answers()
"""

AFTER_A_CALL = """
assert ask() == "a b"
in_children(all_are_refused)
answers()
"""

BETWEEN_CALLS = """
client = Client(TARGET)
assert client.generate("a b").text() == "a b"
in_children(answers)
in_children(lambda: ask(client))
assert ask(client) == "a b"
"""

AFTER_A_SESSION = """
assert ask_on_session() == "a b"
in_children(all_are_refused, 20)  # enough of them for a collection of garbage on the way
answers()
"""

AFTER_ASYNCIO = """
assert ask_with_asyncio() == "a b"
in_children(all_are_refused)
answers()
"""

WITHIN_A_SESSION = """
client = Client(TARGET)
session = client.session()
read, held, hanging = session.submit("a b"), session.submit("!hold a b"), session.submit("!hang")
assert read.text() == "a b" and next(held).text == "a"

def child():
    global client, session, held, hanging
    all_are_refused()
    assert read.text() == "a b", "what came before can be read"
    for action in (client.models, client.session, lambda: session.submit("a"), held.text, hanging.text):
        try:
            action()
        except FailedPrecondition as error:
            assert error.reason == "FORKED", error
        else:
            raise AssertionError("it went on")
    held.cancel()
    session.close()
    client.close()
    client = session = held = hanging = None
    gc.collect()

in_children(child)
held.cancel()
assert held.outputs()[0].text == "a" and session.submit("a b").text() == "a b"
"""

WITHIN_A_CALL = """
client = Client(TARGET)
held = client.generate("!hold a b")
assert next(held).text == "a"

def child():
    all_are_refused()
    for action in (client.models, lambda: next(held)):
        refused(action)
    held.close()
    client.close()

in_children(child)
held.close()
assert client.generate("a b").text() == "a b"
client.close()
"""


def run(what: str, **environment: str) -> None:
    with in_background(gateway_over_fake()) as (_, live):
        command = [sys.executable, "-c", CHILDREN + what, live.grpc_target]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=240, check=False, env={**os.environ, **environment}
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("before", [BEFORE_ANY_USE, BETWEEN_CALLS], ids=["before any use", "between calls"])
def test_a_fork_while_grpc_rests_can_call(before: str) -> None:
    run(before, GRPC_ENABLE_FORK_SUPPORT="1")


@pytest.mark.parametrize(
    "before",
    [AFTER_A_CALL, AFTER_A_SESSION, AFTER_ASYNCIO, WITHIN_A_SESSION, WITHIN_A_CALL],
    ids=[
        "after a call without support of forks",
        "after a session",
        "after asyncio",
        "within a session",
        "within a call",
    ],
)
def test_a_fork_while_grpc_is_at_work_is_refused_at_once(before: str) -> None:
    """Without gRPC's own handlers of forks, whose threads end some of these children before Python runs in them."""
    run(before, GRPC_ENABLE_FORK_SUPPORT="0")
