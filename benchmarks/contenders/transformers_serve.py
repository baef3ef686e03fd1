"""`transformers serve` with continuous batching: how it is installed and started. It takes prompts as text alone."""

import time
from collections.abc import Callable

from benchmarks.contenders.peer_homes import home, python_of, versions
from benchmarks.contenders.process import ServerProcess, environment
from benchmarks.contenders.running import Running, until_answers
from benchmarks.contenders.spec import Spec
from benchmarks.loadgen.measure import Target
from tokenwire.cli.tiers import free_ports
from tokenwire.model_catalog import DEFAULT_MODEL
from tokenwire.models import resolve

PEER = "transformers"
PACKAGES = ("transformers[serving]==5.23.0", "torch==2.13.0", "accelerate")


def start(spec: Spec, threads: int, say: Callable[[str], None] = lambda _: None) -> Running:
    """Start it and wait for its first answer. Raises Absent and, for unknown options, ValueError."""
    given = spec.taken(model=DEFAULT_MODEL, dtype="bfloat16", threads=str(threads))
    python = python_of(PEER)
    found = versions(PEER, ("transformers", "torch"))
    (port,) = free_ports(1)
    folder = str(resolve(given["model"]))
    command = [
        str(python.with_name("transformers")), "serve", folder, "--host", "127.0.0.1", "--port", str(port),
        "--continuous-batching", "--device", "cpu", "--dtype", given["dtype"],
    ]  # fmt: skip
    began_s = time.perf_counter()
    process = ServerProcess(command, environment(OMP_NUM_THREADS=given["threads"]), home())
    target = Target("http", f"127.0.0.1:{port}", folder, "transformers", {"transformers": process.pid})
    try:
        startup_s, answer = until_answers(spec.label, target, process, began_s, say=say)
    except BaseException:
        process.stop()
        raise
    recorded = {name: value for name, value in given.items() if name != "model"}
    return Running(spec.label, target, process, found, recorded, startup_s, answer)
