"""Run by `benchmarks.embeddings`: embeds the same inputs in several ways in one process, and prints JSON.

    python -m benchmarks.embeddings_program '{"model": "FOLDER", "inputs": 512, "rounds": 3, "threads": 2}'

Takes turns: in each round everything is embedded once by each contender. Progress goes to stderr.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from model_svc.engine.engine import Engine
from model_svc.engine.events import Inbox
from model_svc.engine.limits import Limits
from model_svc.engine.sequence import Sequence
from model_svc.runner import build_runner
from model_svc.settings import EngineSettings
from tokenwire.embeddings import EmbeddingOptions, Pooling
from tokenwire.sampling import NEUTRAL, StopParams

PADDED_BATCH = 32
"""As sentence-transformers has it."""
IDS = count(1)

Inputs = list[list[int]]
Embed = Callable[[Inputs], np.ndarray]
"""[N, hidden_size] float32, of unit length."""


def ours(folder: Path, dtype: str, threads: int) -> Embed:
    """The engine over its own runner."""
    runner = build_runner(EngineSettings(model=str(folder), device="cpu", dtype=dtype, threads=threads))
    limits = Limits(runner.info.max_batch_size, runner.info.max_step_tokens)

    def embed(inputs: Inputs) -> np.ndarray:
        engine = Engine(runner, limits)
        sequences = [
            Sequence(
                sequence_id=next(IDS), token_ids=list(ids), num_prompt_tokens=len(ids), sampling=NEUTRAL,
                stop=StopParams(max_tokens=0), embedding=EmbeddingOptions(Pooling.MEAN),
            )
            for ids in inputs
        ]  # fmt: skip
        engine.take(Inbox(sequences=sequences))
        vectors = {}
        while engine.has_work:
            vectors |= {ended.sequence_id: ended.terminal.vector for ended in engine.step().ended}
        return np.stack([np.frombuffer(vectors[s.sequence_id] or b"", np.float32) for s in sequences])

    return embed


def padded(folder: Path, dtype: str) -> Embed:
    """transformers, in batches padded to their longest."""
    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True).eval()

    @torch.inference_mode()
    def embed(inputs: Inputs) -> np.ndarray:
        order = sorted(range(len(inputs)), key=lambda index: -len(inputs[index]))
        found = np.empty((len(inputs), model.config.hidden_size), np.float32)
        for start in range(0, len(order), PADDED_BATCH):
            batch = order[start : start + PADDED_BATCH]
            longest = len(inputs[batch[0]])
            ids = torch.zeros(len(batch), longest, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(batch):
                ids[row, : len(inputs[index])] = torch.tensor(inputs[index])
                mask[row, : len(inputs[index])] = 1
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            sums = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            found[batch] = torch.nn.functional.normalize(sums).numpy()
        return found

    return embed


def inputs_of(num_inputs: int, vocab_size: int, longest: int) -> Inputs:
    """Token ids; lengths are spread as those of sentences and paragraphs are, most of them short."""
    rng = random.Random(0)
    lengths = [min(longest, max(3, round(rng.lognormvariate(3.3, 0.8)))) for _ in range(num_inputs)]
    return [[rng.randrange(vocab_size // 10, vocab_size) for _ in range(length)] for length in lengths]


def measured(wanted: dict[str, Any]) -> dict[str, Any]:
    """Everything, as the record has it."""
    folder, threads = Path(wanted["model"]), wanted["threads"]
    torch.set_num_threads(threads)
    config = json.loads((folder / "config.json").read_text())
    longest = min(256, config["max_position_embeddings"] - 2)
    inputs = inputs_of(wanted["inputs"], config["vocab_size"], longest)
    contenders: dict[str, Embed] = {
        "transformers float32, padded": padded(folder, "float32"),
        "transformers bfloat16, padded": padded(folder, "bfloat16"),
        "ours float32": ours(folder, "float32", threads),
        "ours bfloat16": ours(folder, "bfloat16", threads),
    }
    reference = contenders["transformers float32, padded"](inputs)
    cosines = {name: float((embed(inputs) * reference).sum(1).min()) for name, embed in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(wanted["rounds"]):
        for name, embed in contenders.items():
            began_s, cpu_began_s = time.perf_counter(), time.process_time()
            embed(inputs)
            seconds[name].append(time.perf_counter() - began_s)
            cpu_seconds[name].append(time.process_time() - cpu_began_s)
            print(f"round {number + 1}: {name}: {len(inputs) / seconds[name][-1]:.0f}/s", file=sys.stderr)
    first, num_tokens, lengths = next(iter(seconds.values())), sum(map(len, inputs)), list(map(len, inputs))
    found: dict[str, dict[str, Any]] = {}
    for name, times in seconds.items():
        typical_s = statistics.median(times)
        found[name] = {
            "inputs_per_s": len(inputs) / typical_s,
            "tokens_per_s": num_tokens / typical_s,
            "ratio": statistics.median(a / b for a, b in zip(first, times, strict=True)),
            "cpu_s_per_1k": 1000 * statistics.median(cpu_seconds[name]) / len(inputs),
            "least_cosine": cosines[name],
            "seconds": times,
        }
    spread = {"least": min(lengths), "most": max(lengths), "mean": statistics.mean(lengths)}
    return {"model": folder.name, "num_inputs": len(inputs), "lengths": spread, "contenders": found}


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
