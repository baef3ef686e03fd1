"""The same weights and the same work by `transformers`: generate with a static cache, and its continuous batching."""

import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from benchmarks.gpu_suite.drive import Drive, settings_of
from benchmarks.gpu_suite.report import Report, tolerating
from benchmarks.gpu_suite.shapes import Source, release, synchronize

Prompts = list[list[int]]


def measure_peers(report: Report, source: Source, device: torch.device, dtype: str, quick: bool) -> None:
    """Output tokens per second, prefill included, for some numbers of prompts that come at once."""
    sizes = (1, 4) if quick else (1, 32, 128)
    length, outputs = (32, 8) if quick else (1024, 64)
    prompts: Prompts = []
    with tolerating(), report.measuring("tokenwire"):
        drive = Drive.start(source, settings_of(device, dtype, quick, {}))
        prompts = [drive.prompt(length) for _ in range(2 * max(sizes))]
        try:
            for size in sizes:
                report.add(
                    f"tokenwire {size}", **speed(lambda given: ours(drive, given, outputs), prompts, size, device)
                )
        finally:
            drive.close()
    release(device)
    module: Any = None
    with tolerating(), report.measuring("transformers"):
        module = source.plain(device, dtype)
        module.generation_config = GenerationConfig(do_sample=False, max_new_tokens=outputs, pad_token_id=0)
    if module is None or not prompts:
        return
    for size in sizes[1:]:  # one prompt at a time is not what continuous batching is for
        with (
            tolerating(),
            report.measuring(f"continuous batching {size}", needs_s=1 if quick else 20, most_s=30 if quick else 60),
        ):
            report.add(
                f"continuous batching {size}",
                **speed(lambda given: batched(module, given, outputs, quick), prompts, size, device),
            )
    with tolerating(), report.measuring("continuous batching ends"):
        module.destroy_cached_continuous_batching_manager()
    release(device)
    module.set_attn_implementation("sdpa")  # one that failed leaves its own behind
    for size in sizes[:2]:  # last: compiling takes longest
        with tolerating(), report.measuring(f"generate {size}", needs_s=1 if quick else 30, most_s=30 if quick else 90):
            report.add(
                f"generate {size}", cache="static", compiled=device.type == "cuda",
                **speed(lambda given: generated(module, given, outputs), prompts, size, device),
            )  # fmt: skip


def speed(work: Callable[[Prompts], int], prompts: Prompts, size: int, device: torch.device) -> dict[str, Any]:
    """Seconds for `size` prompts once others as long have been served, so that all is compiled and captured."""
    work(prompts[size : 2 * size])
    synchronize(device)
    started_s = time.perf_counter()
    num_tokens = work(prompts[:size])
    synchronize(device)
    seconds = time.perf_counter() - started_s
    if num_tokens % size or not num_tokens:
        raise RuntimeError(f"{num_tokens} tokens came for {size} prompts")
    return {"output_tokens_per_s": num_tokens / seconds, "seconds": seconds, "output_tokens": num_tokens}


def ours(drive: Drive, prompts: Prompts, outputs: int) -> int:
    """Tokens made by the engine."""
    sequences = [drive.add(prompt, outputs) for prompt in prompts]
    drive.run()
    return sum(sequence.num_new_outputs for sequence in sequences)


@torch.inference_mode()
def generated(module: Any, prompts: Prompts, outputs: int) -> int:
    """Tokens made by generate with a static cache, which it compiles for on a GPU."""
    ids = torch.tensor(prompts, device=module.device)
    made = module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=outputs, do_sample=False,
        cache_implementation="static",
    )  # fmt: skip
    return int((made.shape[1] - ids.shape[1]) * len(prompts))


def batched(module: Any, prompts: Prompts, outputs: int, quick: bool) -> int:
    """Tokens made by continuous batching as it sets itself up, which stays for the next call.

    `quick`: with a small cache, because on a CPU it would take most of the memory.
    """
    small: dict[str, Any] = {}
    if quick:
        config = transformers.ContinuousBatchingConfig(num_blocks=32, max_batch_tokens=256)
        small = {"continuous_batching_config": config}
    results = module.generate_batch(
        inputs=prompts, generation_config=module.generation_config, max_new_tokens=outputs, persistent_manager=True,
        **small,
    )  # fmt: skip
    return sum(len(result.generated_tokens) for result in results.values())
