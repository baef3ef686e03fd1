"""Run by `benchmarks.steps`: times decode steps and their floors in one process, and prints JSON.

    python -m benchmarks.steps_program '{"batches": [1, 8, 32], "context": 128, "rounds": 3, "threads": 2}'

Takes turns: in each round everything is timed once at each batch. Progress goes to stderr.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.gpu_suite.drive import Drive
from benchmarks.gpu_suite.shapes import Source
from benchmarks.quality import quality_of
from model_svc.settings import EngineSettings
from tokenwire.model_catalog import DEFAULT_MODEL
from tokenwire.models import resolve

KINDS = {"bfloat16": "none", "int8": "int8", "int4": "int4"}
STEPS = 24
WARM_STEPS = 4
READ_BYTES = 2**30


class Products:
    """Every matrix product of a step, q/k/v and gate/up merged as the engine merges them, and nothing else."""

    def __init__(self, module: Any) -> None:
        """Packs copies of a Llama-shaped model's weights by oneDNN."""
        weights: list[Tensor] = []
        for layer in module.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
            weights += [torch.cat(qkv), attention.o_proj.weight]
            weights += [torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]), mlp.down_proj.weight]
        weights.append(module.get_output_embeddings().weight)
        self._weights = [weight.detach() for weight in weights]
        self.num_bytes = sum(weight.nbytes for weight in self._weights)
        self._packed: dict[int, list[Tensor]] = {}
        self._inputs: dict[tuple[int, int], Tensor] = {}

    def run(self, batch: int) -> None:
        """One step's products for `batch` tokens."""
        if batch not in self._packed:
            self._packed[batch] = [torch.ops.mkldnn._reorder_linear_weight(weight, batch) for weight in self._weights]
        for weight, packed in zip(self._weights, self._packed[batch], strict=True):
            key = (batch, weight.shape[1])
            if key not in self._inputs:
                self._inputs[key] = torch.randn(*key, dtype=torch.bfloat16)
            torch.ops.mkldnn._linear_pointwise(self._inputs[key], packed, None, "none", [], "")


def main() -> None:
    """Measure what the first argument asks for."""
    wanted = json.loads(sys.argv[1])
    torch.set_num_threads(wanted["threads"])
    folder = resolve(DEFAULT_MODEL)
    drives = {kind: drive_of(folder, mode, wanted) for kind, mode in KINDS.items()}
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).eval()
    products = Products(plain)
    steps: dict[str, dict[int, list[float]]] = {}
    read_s: list[float] = []
    with torch.inference_mode():
        for number in range(wanted["rounds"]):
            say(f"round {number + 1} of {wanted['rounds']}")
            read_s.append(time_of_reading())
            for batch in wanted["batches"]:
                for what, seconds in once(drives, plain, products, batch, wanted["context"]).items():
                    steps.setdefault(what, {}).setdefault(batch, []).append(1e3 * seconds)
    rate = READ_BYTES / statistics.median(read_s)
    floor = dict.fromkeys(wanted["batches"], 1e3 * products.num_bytes / rate)
    medians = {what: {b: statistics.median(found) for b, found in by.items()} for what, by in steps.items()}
    say("what quantised weights lose")
    found = {
        "read_gb_per_s": rate / 1e9,
        "weight_mb": products.num_bytes / 1e6,
        "steps_ms": {"floor: reading the bfloat16 weights once": floor, **medians},
        "steps_ms_by_round": steps,
        "quality": quality_of(folder, {kind: drive.model for kind, drive in drives.items()}),
    }
    print(json.dumps(found))


def drive_of(folder: Path, mode: str, wanted: dict[str, Any]) -> Drive:
    """The engine as it serves on this machine."""
    settings = EngineSettings(
        model=str(folder), device="cpu", dtype="bfloat16", quantization=mode, threads=wanted["threads"],
        max_batch_size=max(2, *wanted["batches"]), max_context_tokens=2048, kv_memory=512 * 2**20,
    )  # fmt: skip
    return Drive.start(Source(DEFAULT_MODEL, folder), settings)


def once(drives: dict[str, Drive], plain: Any, products: Products, batch: int, context: int) -> dict[str, float]:
    """Seconds of each at this batch."""
    found = {"floor: the products alone, oneDNN, packed bfloat16": median_s(lambda: products.run(batch))}
    for kind, drive in drives.items():
        whole, forward = engine_s(drive, batch, context)
        found[f"ours, {kind}, forward"] = forward
        found[f"ours, {kind}, whole step"] = whole
    found["transformers, bfloat16, forward"] = plain_s(plain, batch, context)
    return found


def engine_s(drive: Drive, batch: int, context: int) -> tuple[float, float]:
    """Seconds of the engine's whole step and of its forward phase: the median, and the mean of as many steps."""
    drive.decode(batch, context, WARM_STEPS, 60.0)
    forward_s: list[float] = []
    clock = drive.runner.phases
    lap = clock.lap

    def noting(phase: Any) -> None:
        before = clock.seconds["forward"]
        lap(phase)
        if phase == "forward":
            forward_s.append(clock.seconds["forward"] - before)

    clock.lap = noting  # type: ignore[method-assign]
    try:
        whole_s = drive.decode(batch, context, STEPS, 120.0)
    finally:
        del clock.lap
    return statistics.median(whole_s), statistics.median(forward_s[-STEPS:])


def plain_s(module: Any, batch: int, context: int) -> float:
    """Seconds of a decode step of `transformers` itself, sdpa attention over its own cache."""
    cache = DynamicCache()
    ids = torch.randint(100, 40_000, (batch, context))
    module(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    token = ids[:, -1:]
    return median_s(lambda: module(input_ids=token, past_key_values=cache, logits_to_keep=1))


def median_s(call: Callable[[], Any]) -> float:
    """Seconds of a call, the first ones not counted."""
    seconds: list[float] = []
    for _ in range(WARM_STEPS + STEPS):
        began_s = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds[WARM_STEPS:])


def time_of_reading() -> float:
    """Seconds to read READ_BYTES once with all threads: the fastest of some reductions."""
    memory = torch.ones(READ_BYTES // 4, dtype=torch.float32)
    return min(median_s(lambda: torch.sum(memory)), median_s(lambda: torch.amax(memory)))


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
