"""`python -m tokenwire.cli.tier GRACE_S MODULE ARGUMENTS…`: a tier that does not outlive `tokenwire up`.

Runs the module as `python -m MODULE` does. Standard input is a pipe that only `tokenwire up` holds open: when that
process is gone, however it went, the pipe ends, and this process gets SIGTERM, then its whole group SIGKILL after
GRACE_S seconds. Knows nothing of what the tier does.
"""

import os
import runpy
import signal
import sys
import threading
import time


def follow_parent(grace_s: float) -> None:
    """Wait for the parent's end, then end this process and its group."""
    while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Start the watch, then become the tier."""
    grace_s, module = float(sys.argv[1]), sys.argv[2]
    threading.Thread(target=follow_parent, args=(grace_s,), name="follow-parent", daemon=True).start()
    sys.argv[:] = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
