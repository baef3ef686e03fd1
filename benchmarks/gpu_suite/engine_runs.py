"""What is measured of the engine on one shape: correctness, prefill, decode, idle time, latency under load."""

import dataclasses
import random
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_suite.drive import Drive, raise_errors, settings_of
from benchmarks.gpu_suite.report import Report, tolerating
from benchmarks.gpu_suite.shapes import Cost, Source, cost_of, release
from model_svc.engine.sequence import Sequence
from model_svc.model.attention import ATTENTION_NAME
from model_svc.model.native_attention import NativeBackend
from model_svc.settings import EngineSettings

ATTENTIONS = next(f for f in dataclasses.fields(EngineSettings) if f.name == "attention").metadata["choices"]
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "eager: cuda_graphs=off overlap=off": {"cuda_graphs": "off", "overlap": "off"},
    "graphs alone: overlap=off": {"overlap": "off"},
    "overlap alone: cuda_graphs=off": {"cuda_graphs": "off", "overlap": "on"},
    **{f"attention={name}": {"attention": name} for name in ATTENTIONS if name not in ("auto", NativeBackend.name)},
    "block_size=64": {"block_size": 64},
    "merge_linears=off": {"merge_linears": "off"},
    "merge_linears=on": {"merge_linears": "on"},
    "graphs and compile: overlap=off compile=on": {"overlap": "off", "compile": "on"},
    "compile=on": {"compile": "on"},
}
"""Settings that are compared with the default; what that is anyway is left out. Compiling is last: it takes longest."""
COMPILE_S = 45.0
"""What has to be left for a variant that compiles."""
LOAD = 0.6
"""Share of the time that the requests of the Poisson run would take one after the other at full batches."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.05}
"""Largest mean difference of log-probabilities to `transformers`."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    batches: tuple[int, ...] = (1, 8, 32, 128, 256)
    variant_batches: tuple[int, ...] = (1, 32)
    context: int = 1024
    num_steps: int = 48
    most_s: float = 4.0
    prefill_tokens: int = 32768
    compared_tokens: int = 200
    poisson_s: float = 15.0
    mean_outputs: int = 96


QUICK = Scale(
    (1, 4, 8), (1, 4), context=48, num_steps=6, most_s=1.0, prefill_tokens=512, compared_tokens=40, poisson_s=1.5,
    mean_outputs=8,
)  # fmt: skip


def measure_shape(
    report: Report, source: Source, device: torch.device, dtype: str, ceilings: dict[str, Any], quick: bool
) -> None:
    """Everything of one shape. `ceilings`: the results of that section, where there are any."""
    scale = QUICK if quick else Scale()
    usual: dict[str, Any] = {"overlap": "off", "cuda_graphs": "off", "merge_linears": "off"}
    if device.type == "cuda":
        usual = {"overlap": "on", "merge_linears": "on"}
    for name, changed in VARIANTS.items():
        if changed and changed.items() <= usual.items():
            report.add(f"start {name}", left_out="it is the default here")
            continue
        compiles = changed.get("compile") == "on"
        if quick and compiles:
            report.add(f"start {name}", left_out="compiling takes longer than all of a quick run")
            continue
        recorded = {"lazy_graphs": True} if changed else {}  # few batch sizes are measured then
        release(device)
        with tolerating(), report.measuring(f"start {name}", needs_s=COMPILE_S if compiles else 1 if quick else 10):
            started_s = time.perf_counter()
            drive = Drive.start(source, settings_of(device, dtype, quick, changed | recorded))
            cost = cost_of(drive.model)
            info = drive.runner.info
            usual.setdefault("attention", info.attention)
            report.add(
                f"start {name}", seconds=time.perf_counter() - started_s, phases_s=info.phases_s,
                attention=info.attention, cache_tokens=drive.capacity_tokens,
                weight_gb=cost.weight_bytes / 1e9,
            )  # fmt: skip
            try:
                measure_variant(report, drive, name, cost, scale, ceilings)
            finally:
                drive.close()


def measure_variant(
    report: Report, drive: Drive, name: str, cost: Cost, scale: Scale, ceilings: dict[str, Any]
) -> None:
    """One variant: all of it for the default, decode at few batches for the others."""
    decodes: dict[int, float] = {}
    if name == "default":
        with tolerating(), report.measuring("correctness"):
            report.add("correctness", **compare(drive, scale.compared_tokens))
        with tolerating(), report.measuring("prefill"):
            report.add("prefill", **prefill(drive, cost, scale, ceilings))
    for batch in scale.batches if name == "default" else scale.variant_batches:
        label = f"decode {name} batch {batch}"
        with tolerating(), report.measuring(label, needs_s=1):
            if batch > drive.runner.info.max_batch_size or batch * (scale.context + 128) > drive.capacity_tokens:
                report.add(label, left_out=f"the cache holds {drive.capacity_tokens} tokens")
                continue
            steps = drive.decode(batch, scale.context, scale.num_steps, scale.most_s)
            decodes[batch] = statistics.median(steps)
            report.add(label, **decode_figures(steps, batch, scale.context, cost, ceilings))
    if drive.model.device.type == "cuda":
        with tolerating(), report.measuring(f"idle {name}", needs_s=5):
            shares = {f"batch {batch}": idle_share(drive, batch, scale) for batch in scale.variant_batches}
            report.add(f"idle {name}", **shares)
    if name == "default":
        at = max((batch for batch in decodes if batch <= 32), default=0)
        prefilled = report.results.get("prefill", {}).get("tokens_per_s")
        if at and prefilled:
            with tolerating(), report.measuring("poisson", needs_s=scale.poisson_s):
                request_s = scale.mean_outputs * decodes[at] / at + 9 / 16 * scale.context / prefilled
                report.add("poisson", **poisson(drive, LOAD / request_s, scale))


def decode_figures(
    steps: list[float], batch: int, context: int, cost: Cost, ceilings: dict[str, Any]
) -> dict[str, Any]:
    """Speed, and how much of the measured bandwidth it is."""
    median_s = statistics.median(steps)
    gb_per_s = cost.decode_bytes(batch, context + len(steps) // 2) / median_s / 1e9
    figures: dict[str, Any] = {
        "ms_per_step": 1000 * median_s, "ms_p99": 1000 * percentile(steps, 0.99), "tokens_per_s": batch / median_s,
        "steps": len(steps), "gb_per_s": gb_per_s,
    }  # fmt: skip
    for ceiling in ("read", "copy"):
        if "gb_per_s" in ceilings.get(ceiling, {}):
            figures[f"share_of_{ceiling}_bandwidth"] = gb_per_s / ceilings[ceiling]["gb_per_s"]
    return figures


def prefill(drive: Drive, cost: Cost, scale: Scale, ceilings: dict[str, Any]) -> dict[str, Any]:
    """Prompts of the measured context, nothing decoding beside them."""
    num_prompts = max(1, scale.prefill_tokens // scale.context)
    for repeat in range(2):  # the first warms up
        started_s = time.perf_counter()
        for _ in range(num_prompts if repeat else 1):
            drive.add(drive.prompt(scale.context), 1)
        drive.run()
        seconds = time.perf_counter() - started_s
    tokens = num_prompts * scale.context
    tflops = cost.prefill_flops(tokens, scale.context) / seconds / 1e12
    figures: dict[str, Any] = {"tokens_per_s": tokens / seconds, "tokens": tokens, "tflop_per_s": tflops}
    if "tflop_per_s" in ceilings.get("matmul", {}):
        figures["share_of_matmul_peak"] = tflops / ceilings["matmul"]["tflop_per_s"]
    return figures


def compare(drive: Drive, num_tokens: int) -> dict[str, Any]:
    """Log-probabilities and greedy tokens beside those of `transformers` with sdpa, on the same weights.

    Three sequences of different length share the steps; the reference computes each alone.
    """
    lengths = (num_tokens, num_tokens // 3, 5)
    sequences = [drive.add(drive.prompt(length), 16, logprobs=0, prompt_logprobs=0) for length in lengths]
    given: dict[int, list[float]] = {sequence.sequence_id: [] for sequence in sequences}
    for result in drive.run():
        for entries in (result.new.prompt_logprobs, result.new.logprobs):
            for sequence_id, logprobs in entries.items():
                given[sequence_id] += [entry.logprob for entry in logprobs]
    differences: list[float] = []
    num_equal = num_outputs = 0
    gap = 0.0
    for sequence in sequences:
        wanted = reference_logprobs(drive, sequence)
        target = torch.tensor(sequence.token_ids[1:], device=wanted.device)[:, None]
        mine = torch.tensor(given[sequence.sequence_id], device=wanted.device)
        differences += (mine - wanted.gather(-1, target)[:, 0]).abs().tolist()
        made = wanted[sequence.num_prompt_tokens - 1 :]
        chosen = target[sequence.num_prompt_tokens - 1 :]
        num_outputs += len(chosen)
        num_equal += int((made.argmax(-1) == chosen[:, 0]).sum())
        gap = max(gap, float((made.amax(-1) - made.gather(-1, chosen)[:, 0]).max()))
    mean = statistics.fmean(differences)
    dtype = drive.runner.info.dtype
    return {
        "right": mean <= TOLERANCE[dtype], "mean_logprob_difference": mean, "largest": max(differences),
        "allowed_mean": TOLERANCE[dtype], "greedy_tokens_equal": num_equal, "greedy_tokens": num_outputs,
        "largest_gap_of_a_token_that_differs": gap, "dtype": dtype, "reference": "transformers sdpa, same dtype",
    }  # fmt: skip


@torch.inference_mode()
def reference_logprobs(drive: Drive, sequence: Sequence) -> torch.Tensor:
    """[n - 1, V] fp32: what follows each token but the last, by `transformers` itself."""
    module = drive.model.module
    module.set_attn_implementation("sdpa")
    try:
        ids = torch.tensor([sequence.token_ids], device=drive.model.device)
        logits: torch.Tensor = module(input_ids=ids, use_cache=False).logits[0, :-1]
        return logits.float().log_softmax(-1)
    finally:
        module.set_attn_implementation(ATTENTION_NAME)


def idle_share(drive: Drive, batch: int, scale: Scale) -> float:
    """Share of the time between the first and the last of some decode steps in which the GPU ran no kernel."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    sequences = [drive.add(drive.prompt(scale.context), 1000) for _ in range(batch)]
    try:
        drive.run(until=lambda: all(s.num_new_outputs > 4 for s in sequences))
        with torch.profiler.profile(activities=activities) as profile:
            started_s = time.perf_counter()
            for _ in range(16):
                raise_errors(drive.engine.step())
            wall_s = time.perf_counter() - started_s
        busy_us = sum(event.self_device_time_total for event in profile.key_averages())
        if not busy_us:
            raise RuntimeError("the profiler saw no kernel")
        return 1 - busy_us / 1e6 / wall_s
    finally:
        drive.abort(sequences)


def poisson(drive: Drive, rate: float, scale: Scale) -> dict[str, Any]:
    """`rate` requests a second arrive at random, with prompts between an eighth of the context and all of it."""
    rng = random.Random(1)
    gaps: list[float] = []
    firsts: list[float] = []
    arrived_s: dict[int, float] = {}
    last_s: dict[int, float] = {}
    open_sequences: dict[int, Sequence] = {}
    started_s = time.perf_counter()
    next_s = started_s + rng.expovariate(rate)
    num_tokens = num_steps = 0
    replayed, drawn = num_replays(drive)
    while (now_s := time.perf_counter()) - started_s < scale.poisson_s:
        while next_s <= now_s:
            outputs = rng.randint(scale.mean_outputs // 2, scale.mean_outputs * 3 // 2)
            made = drive.add(drive.prompt(rng.randint(scale.context // 8, scale.context)), outputs)
            arrived_s[made.sequence_id], open_sequences[made.sequence_id] = next_s, made
            next_s += rng.expovariate(rate)
        if not drive.engine.has_work:
            time.sleep(max(0.0, min(next_s, started_s + scale.poisson_s) - time.perf_counter()))
            continue
        result = drive.engine.step()
        raise_errors(result)
        num_steps += result.num_batch_sequences > 0
        now_s = time.perf_counter()
        for sequence_id in result.new.sequence_ids:
            before_s = last_s.get(sequence_id)
            (firsts.append(now_s - arrived_s[sequence_id]) if before_s is None else gaps.append(now_s - before_s))
            last_s[sequence_id] = now_s
            num_tokens += 1
        for ended in result.ended:
            open_sequences.pop(ended.sequence_id, None)
    drive.abort(list(open_sequences.values()))
    if not gaps:
        raise RuntimeError(f"{len(arrived_s)} requests arrived and no second token came in {scale.poisson_s} s")
    replays, draws = num_replays(drive)
    return {
        "graph_steps_share": (replays - replayed) / max(1, num_steps),
        "graph_draws_share": (draws - drawn) / max(1, num_steps),
        "requests_per_s": rate, "requests": len(arrived_s), "tokens_per_s": num_tokens / scale.poisson_s,
        "inter_token_ms": {p: 1000 * percentile(gaps, float(p[1:]) / 100) for p in ("p50", "p90", "p99")},
        "first_token_ms": {p: 1000 * percentile(firsts, float(p[1:]) / 100) for p in ("p50", "p99")},
    }  # fmt: skip


def num_replays(drive: Drive) -> tuple[int, int]:
    """Steps whose decodes were replayed from a recording so far, and those whose decodes were drawn by one."""
    graphs = drive.runner._graphs
    return (graphs.num_replays, graphs.sampler.num_replays) if graphs is not None else (0, 0)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
