"""In a process of its own: a limit that was lowered cannot be raised again."""

import subprocess
import sys

import pytest

from tokenwire.open_files import RESERVED_FILES

PROGRAM = """
import logging, resource, sys
from tokenwire.open_files import connections_within, raise_limit
logging.basicConfig(format="%(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
raise_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], connections_within(int(sys.argv[3])))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "allowed"),
    [(128, 1000, 500, 500), (128, 1000, 10_000, 1000 - RESERVED_FILES), (100, 100, 10_000, 50)],
)
def test_the_limit_is_raised_and_bounds_the_connections(soft: int, hard: int, wanted: int, allowed: int) -> None:
    arguments = [sys.executable, "-c", PROGRAM, str(soft), str(hard), str(wanted)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(hard), str(allowed)]
    assert ("fewer HTTP connections than max_connections" in found.stderr) == (allowed < wanted)
