"""Where a measurement was made: processor, memory, versions, load, commit. No host name and no path."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("grpcio", "protobuf", "tokenizers", "torch", "transformers", "uvicorn", "uvloop")
BUSY_LOAD = 0.25
"""Per core, before a run begins: more makes the figures doubtful."""
ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


def machine() -> dict[str, Any]:
    """As it is now; call it before the load begins."""
    cores = num_cores()
    load = os.getloadavg()[0]
    return {
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := version_of(name))},
        "load_average": round(load, 2),
        "quiet": load / cores <= BUSY_LOAD,
        "commit": commit(),
    }


def wait_until_quiet(say: Callable[[str], None], limit_s: float = 240.0) -> None:
    """Wait until what ran before no longer counts in the load average, at most `limit_s`: a busy machine stays busy."""
    until_s = time.monotonic() + limit_s
    told = False
    while os.getloadavg()[0] / num_cores() > BUSY_LOAD and time.monotonic() < until_s:
        if not told:
            say(f"waiting for the load average to fall from {os.getloadavg()[0]:.2f}, at most {limit_s:.0f} s")
            told = True
        time.sleep(2)


def num_cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Those that decide how fast a model's layers can be."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*: (.*)$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return [flag for flag in ISA_FLAGS if flag in flags]


def version_of(package: str) -> str:
    """Empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The commit of the working tree, with `+` where it has changes; empty outside a repository."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return ""
    return told.stdout.strip()
