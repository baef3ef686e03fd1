"""Tokenwire's gateway and tokenizer tier of this working tree before a light mock of the model tier's Session.

What is behind a frontend costs as little here as behind `smg`: see `token_worker.py` and `smg_worker.py`. With the
option `tree`, gateway and tokenizer tier are those of another checkout: `ours-edge:tree=../before` beside `ours-edge`
shows what a change brings. With `counts=no` nothing is entered into their metrics; with `collector`, an address,
requests are traced to it, all or the part that `ratio` says. Their metrics ports are among the addresses.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.contenders.process import ServerProcess, WithOthers, environment, until_listens
from benchmarks.contenders.running import Running, until_answers
from benchmarks.contenders.spec import Spec
from benchmarks.loadgen.measure import Target
from benchmarks.machine import ROOT, version_of
from tokenwire.cli.tiers import Tier, UpSettings, free_ports, tiers_of
from tokenwire.model_catalog import DEFAULT_MODEL
from tokenwire.models import resolve, served_name
from tokenwire.version import __version__

EDGE = "ours-edge"
WORKER = "benchmarks.contenders.token_worker"
UNCOUNTED = "benchmarks.contenders.uncounted"


def start(spec: Spec, threads: int, say: Callable[[str], None] = lambda _: None) -> Running:
    """Start all three and wait for the first answer. Raises Absent and, for unknown options, ValueError."""
    given = spec.taken(
        model=DEFAULT_MODEL,
        step_ms="20",
        vocab="49152",
        api="chat",
        tree=str(ROOT),
        counts="yes",
        collector="",
        ratio="1",
    )
    tree = Path(given.pop("tree")).resolve()
    if not (tree / "gateway" / "__main__.py").is_file():
        raise ValueError(f"{spec.label}: tree={tree}: a checkout of this repository is needed")
    if given["api"] not in ("chat", "http", "grpc", "session"):
        raise ValueError(f"{spec.label}: api={given['api']}: one of chat, http, grpc, session")
    if given["counts"] not in ("yes", "no"):
        raise ValueError(f"{spec.label}: counts={given['counts']}: yes or no")
    grpc_port, http_port, tokenizer_port, model_port, *metrics = free_ports(6)
    settings = UpSettings(
        model=given["model"], port=grpc_port, http_port=http_port, tokenizer_port=tokenizer_port,
        model_port=model_port, drain_timeout_s=5.0, gateway_metrics_port=metrics[0], tokenizer_metrics_port=metrics[1],
    )  # fmt: skip
    gateway, tokenizer, _ = tiers_of(settings)
    began_s = time.perf_counter()
    arguments = [str(model_port), given["step_ms"], given["vocab"], str(resolve(given["model"]))]
    started = [ServerProcess([sys.executable, "-m", WORKER, *arguments], environ_of(), ROOT)]
    try:
        until_listens(started[0], "the mock worker")
        counts = given["counts"] == "yes"
        traces = ["--trace-endpoint", given["collector"], "--trace-ratio", given["ratio"]] if given["collector"] else []
        started.append(ServerProcess(command_of(tokenizer, counts, traces), environ_of(tokenizer, tree), tree))
        process = WithOthers(command_of(gateway, counts, traces), environ_of(gateway, tree), tree, started)
    except BaseException:
        for each in reversed(started):
            each.stop()
        raise
    http, grpc, tokens = (f"127.0.0.1:{port}" for port in (http_port, grpc_port, model_port))
    addresses = {"chat": http, "http": http, "grpc": grpc, "session": grpc, "tokens": tokens}
    addresses |= dict(
        zip(("gateway metrics", "tokenizer metrics"), (f"127.0.0.1:{port}" for port in metrics), strict=True)
    )
    pids = {"gateway": process.pid, "tokenizer": started[1].pid, "worker": started[0].pid}
    target = Target(given["api"], addresses[given["api"]], served_name(given["model"]), tiers=pids)
    try:
        startup_s, answer = until_answers(spec.label, target, process, began_s, say=say)
    except BaseException:
        process.stop()
        raise
    versions = {"tokenwire": __version__, **{name: version_of(name) for name in ("grpcio", "tokenizers")}}
    recorded = {name: value for name, value in given.items() if name != "model"} | {"engine": "mock"}
    return Running(spec.label, target, process, versions, recorded, startup_s, answer, addresses=addresses)


def command_of(tier: Tier, counts: bool, traces: list[str]) -> list[str]:
    module = [tier.module] if counts else [UNCOUNTED, tier.module]
    return [sys.executable, "-m", *module, *tier.arguments, *traces]


def environ_of(tier: Tier | None = None, tree: Path = ROOT) -> dict[str, str]:
    """Of a working tree, and the tier's own."""
    python_path = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH", "")]))
    found = environment(PYTHONPATH=python_path, TOKENWIRE_LOG="warning")
    return found if tier is None else {**dict(tier.environ), **found}
