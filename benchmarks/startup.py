"""How long from `tokenwire up` to the first token, with the model in the store.

    python -m benchmarks.startup [--runs 5] [-- arguments of tokenwire up]

Each run starts the three tiers on free ports as a user would, waits for the line that says that a first token came
through all of them, and stops them. The clock runs from before the process is started, interpreter start included.
Prints one line and writes benchmarks/results/startup.json.
"""

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "startup.json"
FREE_PORTS = [f"--{name}port=0" for name in ("", "http-", "tokenizer-", "model-")]
FREE_PORTS += [f"--{tier}-metrics-port=0" for tier in ("gateway", "tokenizer", "model")]
READY = re.compile(r"\s+(\w+)\s+ready after\s+([\d.]+) s")


def run_once(arguments: list[str]) -> dict[str, float]:
    """Seconds until each tier was ready, and until the first token."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "tokenwire.cli.main", "up", *FREE_PORTS, *arguments]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENWIRE_LOG": "warning"}
    seconds: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if match := READY.match(line):
                seconds[match[1]] = float(match[2])
            if "first token served" in line:
                seconds["first_token"] = round(time.perf_counter() - began, 3)
                process.send_signal(signal.SIGTERM)
    if process.returncode != 0 or "first_token" not in seconds:
        raise SystemExit(f"tokenwire up ended with status {process.returncode}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("arguments", nargs="*", help="arguments of tokenwire up, after --")
    given = parser.parse_args()
    runs = [run_once(given.arguments) for _ in range(given.runs)]
    first = [run["first_token"] for run in runs]
    result = {
        "what": "seconds from `tokenwire up` to the first token, model in the store",
        "arguments": given.arguments,
        "machine": {"cores": len(os.sched_getaffinity(0)), "cpu": cpu_name(), "python": platform.python_version()},
        "median_s": statistics.median(first),
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"first token after {min(first):.2f} to {max(first):.2f} s, median {statistics.median(first):.2f} s: {RESULTS}"
    )


def cpu_name() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    main()
