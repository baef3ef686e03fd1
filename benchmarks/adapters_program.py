"""Run by `benchmarks.adapters`: times batches with adapters and without in one process, and prints JSON.

    python -m benchmarks.adapters_program '{"batches": [8], "ranks": [16], "rounds": 5, "threads": 2,
                                            "quantization": "none"}'

A pair is a batch without adapters and the same batch with three adapters and none by turns, one after the other, in
either order. Progress goes to stderr.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.gpu_suite.drive import Drive
from benchmarks.gpu_suite.shapes import Source
from model_svc.engine.__main__ import load_adapters
from model_svc.engine.adapters import LoadAdapter
from model_svc.engine.events import Inbox
from model_svc.settings import EngineSettings
from tokenwire.model_catalog import DEFAULT_MODEL
from tokenwire.models import resolve

PROMPT_TOKENS, OUTPUT_TOKENS = 128, 32
NUM_ADAPTERS = 3
STALL_BATCH = 8
STALL_STEPS = 60


def main() -> None:
    """Measure what the first argument asks for."""
    wanted = json.loads(sys.argv[1])
    folder = resolve(DEFAULT_MODEL)
    with tempfile.TemporaryDirectory() as made:
        names: dict[int, list[str]] = {}
        for rank in wanted["ranks"]:
            names[rank] = [f"r{rank}-{number}" for number in range(NUM_ADAPTERS)]
            for name in names[rank]:
                write_random_adapter(folder, Path(made) / name, rank)
        settings = EngineSettings(
            model=str(folder), device="cpu", threads=wanted["threads"], quantization=wanted["quantization"],
            max_batch_size=max(STALL_BATCH, *wanted["batches"]), max_context_tokens=1024, kv_memory=2**30,
            adapter_folder=made, adapter_slots=NUM_ADAPTERS * len(names),
        )  # fmt: skip
        drive = Drive.start(Source(DEFAULT_MODEL, folder), settings)
        found = load_adapters(drive.engine, tuple((n, f"{made}/{n}") for group in names.values() for n in group))
        pairs = []
        for number in range(wanted["rounds"]):
            say(f"round {number + 1} of {wanted['rounds']}")
            for rank, group in names.items():
                pairs += [pair_of(drive, batch, rank, group, number) for batch in wanted["batches"]]
        stalls = [stall_of(drive, f"{made}/{names[max(names)][0]}", number) for number in range(wanted["rounds"])]
    print(json.dumps({"pairs": pairs, "stalls": stalls, "adapter_bytes": {o.name: o.num_bytes for o in found}}))


def write_random_adapter(model: Path, folder: Path, rank: int) -> None:
    """A PEFT adapter of every linear layer but the head, of small random numbers."""
    with torch.device("meta"):
        module: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    head, tensors = module.get_output_embeddings(), dict[str, torch.Tensor]()
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and layer is not head:
            tensors[f"base_model.model.{name}.lora_A.weight"] = 0.02 * torch.randn(rank, layer.in_features)
            tensors[f"base_model.model.{name}.lora_B.weight"] = 0.02 * torch.randn(layer.out_features, rank)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def pair_of(drive: Drive, batch: int, rank: int, names: list[str], number: int) -> dict[str, Any]:
    """One pair: seconds of the whole batch, of its median decode step, and of the process's CPU time."""
    found: dict[str, Any] = {"batch": batch, "rank": rank}
    kinds = {"plain": [""], "mixed": ["", *names]}
    for kind in sorted(kinds, reverse=bool(number % 2)):
        found[kind] = batch_s(drive, [kinds[kind][index % len(kinds[kind])] for index in range(batch)])
    return found


def batch_s(drive: Drive, adapters: list[str]) -> dict[str, float]:
    """Seconds of one batch, a sequence for each adapter named, from the first step to the last."""
    for adapter in adapters:
        drive.add(drive.prompt(PROMPT_TOKENS), OUTPUT_TOKENS, adapter=adapter)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    results = drive.run()
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    decodes = [each.step_s for each in results if each.num_batch_tokens == len(adapters)]
    return {"whole_s": took_s, "step_s": statistics.median(decodes), "cpu_s": cpu_s}


def stall_of(drive: Drive, folder: str, number: int) -> dict[str, float]:
    """The longest of some decode steps while an adapter is loaded, and of as many without."""
    for _ in range(STALL_BATCH):
        drive.add(drive.prompt(PROMPT_TOKENS), 4 * STALL_STEPS)
    drive.run(until=lambda: all(each.num_new_outputs > 2 for each in drive.engine.scheduler.sequences.values()))
    quiet = [drive.engine.step().step_s for _ in range(STALL_STEPS)]
    name = f"loaded-{number}"
    drive.engine.take(Inbox(adapter_loads=[LoadAdapter(name, folder)]))
    began_s, loading = time.perf_counter(), list[float]()
    while True:
        result = drive.engine.step()
        loading.append(result.step_s)
        if any(outcome.name == name for outcome in result.adapters):
            break
    load_s = time.perf_counter() - began_s
    drive.abort(list(drive.engine.scheduler.sequences.values()))
    drive.engine.take(Inbox(adapter_unloads=[name]))
    return {
        "load_s": load_s, "median_s": statistics.median(quiet), "longest_s": max(quiet),
        "median_loading_s": statistics.median(loading), "longest_loading_s": max(loading),
    }  # fmt: skip


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
