"""What writing a server-sent event costs with each HTTP server: the measurement behind decision 15.

    python -m benchmarks.peers install http-servers
    python -m benchmarks.http_servers [--concurrency 128] [--rounds 3]

Each server answers with ready-made events, one per stream and tick, at 20 ms and as fast as it goes. Counted is the CPU
time of the server's processes per event. Writes benchmarks/results/http-servers.json and .md.
"""

import argparse
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import default_work, say
from benchmarks.comparison.results import page, write
from benchmarks.contenders.peer_homes import python_of, versions
from benchmarks.contenders.process import ServerProcess, environment
from benchmarks.contenders.spec import Absent
from benchmarks.loadgen.measure import Load, Target, run
from benchmarks.machine import ROOT, machine
from benchmarks.program import as_program, one_or_more, refuse_unwritable
from benchmarks.tables import markdown
from tokenwire.cli.tiers import free_ports

PEER = "http-servers"
PACKAGES = ("uvicorn", "httptools", "granian", "aiohttp", "uvloop")
KINDS = {
    "uvicorn": "uvicorn, ASGI",
    "direct": "uvicorn, around ASGI",
    "granian": "granian, RSGI",
    "aiohttp": "aiohttp",
    "bare": "an asyncio protocol without HTTP",
}
SCRIPT = ROOT / "benchmarks" / "contenders" / "sse_servers.py"
PACES_MS = (20.0, 0.0)
START_S = 20.0


def one_run(kind: str, step_ms: float, load: Load, seed: int) -> dict[str, Any]:
    """Start a server, load it, stop it."""
    (port,) = free_ports(1)
    work = default_work()
    environ = environment(PYTHONPATH=str(ROOT), SSE_STEP_MS=f"{step_ms:g}", SSE_TOKENS=str(work.output_tokens))
    command = [str(python_of(PEER)), str(SCRIPT), kind, str(port)]
    with ServerProcess(command, environ, ROOT) as process:
        wait_listening(process, port)
        target = Target("chat", f"127.0.0.1:{port}", "", tiers={"server": process.pid})
        (found,) = run(target, work, [load], seed=seed, say=f"  {kind}, {step_ms:g} ms: ")
    return found


def wait_listening(process: ServerProcess, port: int) -> None:
    """Until the port answers. Raises Absent with what the server said."""
    ends_s = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.status is not None or time.monotonic() > ends_s:
                raise Absent(f"did not start: {process.last_words()}") from None
            time.sleep(0.05)


def measure(kinds: Sequence[str], concurrency: int, num_rounds: int) -> dict[str, Any]:
    """The record: microseconds of CPU per event and events a second, medians over the rounds."""
    where = machine()
    runs: dict[tuple[str, float], list[dict[str, Any]]] = {(kind, pace): [] for kind in kinds for pace in PACES_MS}
    for number in range(num_rounds):
        say(f"round {number + 1} of {num_rounds}")
        for kind in kinds if number % 2 == 0 else reversed(kinds):
            for pace in PACES_MS:
                load = Load(concurrency=concurrency, num_requests=concurrency * (4 if pace else 16))
                runs[kind, pace].append(one_run(kind, pace, load, number))
    rows = []
    for (kind, pace), found in runs.items():
        costs = [each["tiers"]["server"]["cpu_s"] / each["pieces"] * 1e6 for each in found if each["pieces"]]
        rows.append(
            {
                "kind": kind,
                "step_ms": pace,
                "cpu_us_per_event": round(statistics.median(costs), 2) if costs else None,
                "events_per_s": statistics.median(each["pieces"] / each["wall_s"] for each in found),
                "failures": sum(each["failures"] for each in found),
            }
        )
    record = {"machine": where, "quiet": where["quiet"], "date": time.strftime("%Y-%m-%d"), "rounds": num_rounds}
    return {**record, "concurrency": concurrency, "versions": versions(PEER, PACKAGES), "rows": rows}


def text_of(record: dict[str, Any]) -> str:
    """The page."""
    found = {(row["kind"], row["step_ms"]): row for row in record["rows"]}
    rows = [
        [KINDS[kind], *(found[kind, pace]["cpu_us_per_event"] for pace in PACES_MS), found[kind, 0.0]["events_per_s"]]
        for kind in dict.fromkeys(row["kind"] for row in record["rows"])
    ]
    head = ["server", "CPU µs per event at 20 ms", "unpaced", "events/s unpaced"]
    told = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    where = f"{record['machine']['cpu']}, {record['machine']['cores']} cores, {record['date']}"
    about = f"{record['concurrency']} streams, {record['rounds']} round(s), medians; {where}; {told}."
    return page("What a server-sent event costs by HTTP server", record, markdown(head, rows), about)


@as_program
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 when a request failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.http_servers", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--kinds", default=",".join(KINDS), help="of " + ", ".join(KINDS))
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--rounds", type=one_or_more, default=3)
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(argv)
    kinds = given.kinds.split(",")
    if unknown := set(kinds) - KINDS.keys():
        parser.error(f"--kinds {', '.join(sorted(unknown))}: there are {', '.join(KINDS)}")
    refuse_unwritable(parser, given.out)
    record = measure(kinds, given.concurrency, given.rounds)
    text = text_of(record)
    print(text)
    print(f"\nwritten to {write(record, text, 'http-servers', given.out)}")
    return int(any(row["failures"] for row in record["rows"]))


if __name__ == "__main__":
    sys.exit(main())
