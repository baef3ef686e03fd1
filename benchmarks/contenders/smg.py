"""Shepherd Model Gateway in gRPC mode, before a mock of the worker that it speaks to: installed and started."""

import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.contenders.peer_homes import home, python_of, versions
from benchmarks.contenders.process import ServerProcess, WithOthers, environment, until_listens
from benchmarks.contenders.running import Running, until_answers
from benchmarks.contenders.spec import Spec
from benchmarks.loadgen.measure import Target
from tokenwire.cli.tiers import free_ports
from tokenwire.model_catalog import DEFAULT_MODEL
from tokenwire.models import resolve

PEER = "smg"
PACKAGES = ("smg==1.13.0", "smg-grpc-proto", "h2", "uvloop")
WORKER = Path(__file__).parent / "smg_worker.py"
SERVED = "model"


def start(spec: Spec, threads: int, say: Callable[[str], None] = lambda _: None) -> Running:
    """Start both and wait for the first answer. Raises Absent and, for unknown options, ValueError."""
    given = spec.taken(model=DEFAULT_MODEL, step_ms="20", vocab="49152", api="chat")
    if given["api"] != "chat":
        raise ValueError(f"{spec.label}: api={given['api']}: chat alone")
    python, folder = python_of(PEER), str(resolve(given["model"]))
    found = versions(PEER, ("smg", "smg-grpc-proto", "h2"))
    worker_port, port, metrics_port = free_ports(3)
    command = [str(python), str(WORKER), str(worker_port), given["step_ms"], given["vocab"], folder]
    began_s = time.perf_counter()
    worker = ServerProcess(command, environment(), home())
    try:
        until_listens(worker, "its mock worker")
        gateway = [
            str(python.with_name("smg")), "launch", "--host", "127.0.0.1", "--port", str(port),
            "--worker-urls", f"grpc://127.0.0.1:{worker_port}", "--model-path", folder,
            "--prometheus-port", str(metrics_port), "--log-level", "warn",
        ]  # fmt: skip
        process = WithOthers(gateway, environment(), home(), [worker])
    except BaseException:
        worker.stop()
        raise
    target = Target("chat", f"127.0.0.1:{port}", SERVED, tiers={"smg": process.pid, "worker": worker.pid})
    try:
        startup_s, answer = until_answers(spec.label, target, process, began_s, say=say)
    except BaseException:
        process.stop()
        raise
    recorded = {name: value for name, value in given.items() if name != "model"} | {"engine": "mock"}
    return Running(spec.label, target, process, found, recorded, startup_s, answer)
