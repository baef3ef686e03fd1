"""`python -m tokenwire.cli.tier GRACE_S MODULE ARGUMENTS…`: a tier that does not outlive `tokenwire up`.

Runs the module as `python -m MODULE` does. Standard input is a pipe that only `tokenwire up` holds open: when that
process is gone, however it went, the pipe ends, and this process gets SIGTERM. Once it has drained, or after GRACE_S
seconds, its whole group gets SIGKILL. Knows nothing of what the tier does.
"""

import os
import runpy
import signal
import sys
import threading
import time

parent_gone = threading.Event()


def follow_parent(grace_s: float) -> None:
    """Wait for the parent's end, then end this process and its group."""
    while os.read(sys.__stdin__.fileno() if sys.__stdin__ else 0, 4096):
        pass
    parent_gone.set()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Start the watch, then become the tier."""
    grace_s, module = float(sys.argv[1]), sys.argv[2]
    threading.Thread(target=follow_parent, args=(grace_s,), name="follow-parent", daemon=True).start()
    sys.argv[:] = [module, *sys.argv[3:]]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        if parent_gone.is_set():
            os.killpg(0, signal.SIGKILL)  # nobody else is left to end what the tier may have left behind


if __name__ == "__main__":
    main()
