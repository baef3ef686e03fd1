"""A tier that counts nothing: its metrics are there and never entered, so that what entering them costs can be seen.

python -m benchmarks.contenders.uncounted MODULE ARGUMENTS...
"""

import runpy
import sys
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

CALLS = ((Counter, "inc"), (Gauge, "inc"), (Gauge, "dec"), (Gauge, "set"), (Histogram, "observe"))


def nothing(self: Any, *_: Any, **__: Any) -> None:
    """Instead of entering a number."""


def main() -> None:
    for kind, name in CALLS:
        setattr(kind, name, nothing)
    module = sys.argv[1]
    sys.argv = [module, *sys.argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
