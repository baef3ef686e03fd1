"""Tokenwire itself: `tokenwire up` of this working tree, on free ports."""

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from benchmarks.contenders.process import ServerProcess, environment
from benchmarks.contenders.running import Running, until_answers
from benchmarks.contenders.spec import Spec
from benchmarks.loadgen.measure import Target
from benchmarks.machine import ROOT, version_of
from tokenwire.cli.tiers import free_ports
from tokenwire.model_catalog import DEFAULT_MODEL
from tokenwire.models import served_name
from tokenwire.version import __version__

READY = re.compile(r"^\s+(\w[\w-]*)\s+ready after\s+([\d.]+) s", re.MULTILINE)
TIERS = {"gateway": "gateway", "tokenizer_svc": "tokenizer", "model_svc": "model"}
SETTINGS = {
    "quantization": "TOKENWIRE_MODEL_QUANTIZATION",
    "threads": "TOKENWIRE_MODEL_THREADS",
    "window": "TOKENWIRE_MODEL_ADMISSION_WINDOW_MS",
    "window_requests": "TOKENWIRE_MODEL_ADMISSION_WINDOW_REQUESTS",
    "step_ms": "TOKENWIRE_MODEL_MOCK_STEP_MS",
    "prefill": "TOKENWIRE_MODEL_MOCK_PREFILL_TOKENS_PER_S",
    "vocab": "TOKENWIRE_MODEL_MOCK_VOCAB_SIZE",
    "batch": "TOKENWIRE_MODEL_MAX_BATCH_SIZE",
    "device": "TOKENWIRE_MODEL_DEVICE",
    "kv_memory": "TOKENWIRE_MODEL_KV_MEMORY",
    "context": "TOKENWIRE_MODEL_MAX_CONTEXT_TOKENS",
    "step_tokens": "TOKENWIRE_MODEL_MAX_STEP_TOKENS",
    "workers": "TOKENWIRE_GATEWAY_WORKERS",
    "speculation": "TOKENWIRE_MODEL_SPECULATION",
}
"""Options that are settings of the model tier; window in milliseconds. step_ms, prefill, vocab: the mock engine's."""


def start(spec: Spec, threads: int, say: Callable[[str], None] = lambda _: None) -> Running:
    """Start it and wait for its first answer. Raises Absent and, for unknown options, ValueError."""
    given = spec.taken(
        api="http", model=DEFAULT_MODEL, engine="torch", dtype="", threads=str(threads),
        speculation="off",  # answers to random prompts repeat themselves, which nobody's do who asks for something
        **{name: "" for name in SETTINGS if name not in ("threads", "speculation")},
    )  # fmt: skip
    if given["api"] not in ("http", "grpc", "session"):
        raise ValueError(f"{spec.label}: api={given['api']}: one of http, grpc, session")
    grpc_port, http_port, tokenizer_port, model_port = free_ports(4)
    command = [
        sys.executable, "-m", "tokenwire.cli.main", "up", "--model", given["model"], "--engine", given["engine"],
        *(["--dtype", given["dtype"]] if given["dtype"] else []), "--drain-timeout", "5",
        "--port", str(grpc_port), "--http-port", str(http_port), "--tokenizer-port", str(tokenizer_port),
        "--model-port", str(model_port), "--gateway-metrics-port", "0", "--tokenizer-metrics-port", "0",
        "--model-metrics-port", "0",
    ]  # fmt: skip
    settings = {variable: given[name] for name, variable in SETTINGS.items() if given[name]}
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    began_s = time.perf_counter()
    process = ServerProcess(command, environment(PYTHONPATH=python_path, TOKENWIRE_LOG="warning", **settings), ROOT)
    address = f"127.0.0.1:{http_port if given['api'] == 'http' else grpc_port}"
    target = Target(given["api"], address, served_name(given["model"]))
    try:
        startup_s, answer = until_answers(spec.label, target, process, began_s, say=say)
        target = Target(target.api, target.address, target.model, tiers=tiers(process.pid))
    except BaseException:
        process.stop()
        raise
    packages = ("torch", "transformers", "grpcio", "tokenizers")
    versions = {"tokenwire": __version__, **{name: version_of(name) for name in packages}}
    recorded = {name: value for name, value in given.items() if value and name != "model"}
    running = Running(spec.label, target, process, versions, recorded, startup_s, answer)
    http, grpc = f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}"
    tokens = f"127.0.0.1:{model_port}"
    running.addresses = {"http": http, "chat": http, "grpc": grpc, "session": grpc, "tokens": tokens}
    running.phases_s = {name: float(seconds) for name, seconds in READY.findall(process.said())}
    return running


def tiers(pid: int) -> dict[str, int]:
    """The tiers' process ids by name, found below `tokenwire up`; model tiers of several replicas are numbered."""
    found: dict[str, int] = {}
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            for module, name in TIERS.items():
                if module in child.cmdline():
                    found[name if name not in found else f"{name}-{len(found)}"] = child.pid
    return dict(sorted(found.items(), key=lambda pair: list(TIERS.values()).index(pair[0].split("-")[0])))
