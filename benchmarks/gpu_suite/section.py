"""One section of `benchmarks/gpu.py`, in a process of its own: `python -m benchmarks.gpu_suite.section JSON`."""

import dataclasses
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.gpu import REFUSED, host
from benchmarks.gpu_suite.ceilings import measure_ceilings
from benchmarks.gpu_suite.engine_runs import measure_shape
from benchmarks.gpu_suite.peers import measure_peers
from benchmarks.gpu_suite.report import Report
from benchmarks.gpu_suite.shapes import Source
from model_svc.model.device import cpu_multiplies_bf16, resolve_device
from model_svc.nvml import health_of
from tokenwire.errors import FailedPrecondition

PEERS = "peers "
SERVE = "serve "
SERVE_MODULE = "benchmarks.gpu_suite.serve"
"""Loaded for its section alone: it needs grpc."""


def run(told: dict[str, Any], emit: Callable[[str], None]) -> dict[str, Any]:
    """Measure one section; its results as they come go to `emit`, and all of them are returned.

    Raises FailedPrecondition where the device is not there.
    """
    device = resolve_device(told["device"])
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    report = Report(told["until_s"] - time.time(), emit)
    name, quick = told["section"], told["quick"]
    if name == "ceilings":
        report.add("machine", **machine(device))
        measure_ceilings(report, device, getattr(torch, dtype), quick)
        if device.type == "cuda":  # now that it is warm
            report.add("health", **health_figures(device))
        return report.results
    shape = name.removeprefix(PEERS).removeprefix(SERVE)
    folder = Path(told["smollm2"])
    real = folder if shape == "smollm2-135m" and (folder / "config.json").is_file() else None
    source = Source(shape, real)
    report.add("weights", source=str(real.name) if real else "random", dtype=dtype)
    if name.startswith(SERVE):
        import_module(SERVE_MODULE).measure_serving(report, shape, real, device, dtype, quick)
    elif name.startswith(PEERS):
        measure_peers(report, source, device, dtype, quick)
    else:
        measure_shape(report, source, device, dtype, told["ceilings"], quick)
    return report.results


def health_figures(device: torch.device) -> dict[str, Any]:
    """What holds the GPU's clocks back, its memory errors and temperature, or why that is not known."""
    health = health_of(str(getattr(torch.cuda.get_device_properties(device), "uuid", "")))
    return {"not_known": health} if isinstance(health, str) else dataclasses.asdict(health)


def machine(device: torch.device) -> dict[str, Any]:
    """Where this runs."""
    found: dict[str, Any] = host()
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        health = health_of(str(getattr(properties, "uuid", "")))
        found |= {
            "gpu": properties.name, "compute_capability": f"{properties.major}.{properties.minor}",
            "gpu_memory_bytes": properties.total_memory, "cuda": torch.version.cuda,
            "driver": health if isinstance(health, str) else health.driver,
            "slowdowns": None if isinstance(health, str) else health.slowdowns,
        }  # fmt: skip
    else:
        found["bf16_instructions"] = cpu_multiplies_bf16()
    return found


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        run(json.loads(sys.argv[1]), partial(print, flush=True))
    except FailedPrecondition as error:
        if error.reason != "DEVICE_UNAVAILABLE":
            raise
        print(error, file=sys.stderr)
        sys.exit(REFUSED)
