"""From settings to a runner that is ready: device, weights, memory, probe, cache, warm-up, each phase timed.

Knows the order of these things; each is done elsewhere.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from model_svc.engine.batch import RunnerInfo, ScheduledBatch, ScheduledRow, run_step
from model_svc.engine.sequence import Sequence
from model_svc.model.attention import AttentionBackend
from model_svc.model.attention_choice import choose_backend
from model_svc.model.device import resolve_device
from model_svc.model.loader import LoadedModel, load_model
from model_svc.model.paged import LayerKVSpec, allocate
from model_svc.model.probe import kv_specs, probe
from model_svc.runner.decode_graphs import DecodeGraphs, record_on_cuda
from model_svc.runner.gpu_check import check_gpu
from model_svc.runner.host import usable_cores
from model_svc.runner.input_batch import InputBatch
from model_svc.runner.kv_cache import KVSize, kv_size
from model_svc.runner.limits import StepLimits, step_limits
from model_svc.runner.memory import (
    PROFILE_BLOCKS,
    MemoryPlan,
    free_memory_bytes,
    num_bytes_of,
    peak_bytes,
    run_largest_steps,
)
from model_svc.runner.model_runner import TorchModelRunner
from model_svc.settings import EngineSettings
from tokenwire.errors import FailedPrecondition
from tokenwire.sampling import NEUTRAL, StopParams

log = logging.getLogger(__name__)

WARMUP_PROMPT_TOKENS = 8


def start_runner(
    settings: EngineSettings,
    phases_s: dict[str, float],
    load: Callable[[Path, torch.device, str], LoadedModel] = load_model,
) -> TorchModelRunner:
    """Load `settings.model` (a folder) and make it ready to run. Adds its phases to `phases_s`.

    Sets torch's number of threads for the whole process. Raises NotFound and FailedPrecondition.
    """
    torch.set_num_threads(settings.threads or usable_cores())
    device = resolve_device(settings.device)
    limits = step_limits(settings.max_batch_size, settings.max_step_tokens, device.type)
    if device.type == "cuda":
        with timed(phases_s, "device"):
            check_gpu(device, settings.dtype)
    with timed(phases_s, "attention"):
        backend = choose_backend(settings.attention, device, settings.block_size)
    with timed(phases_s, "load"):
        model = load(Path(settings.model), device, settings.dtype)
    context = context_limit(settings.max_context_tokens, model.max_context_tokens)
    activation_bytes: int | None = None
    with timed(phases_s, "probe"):
        specs = kv_specs(model)
    if device.type == "cuda":
        with timed(phases_s, "memory"):
            trial = KVSize(PROFILE_BLOCKS, context)
            activation_bytes = peak_bytes(
                device, lambda: run_largest_steps(make_runner(settings, model, backend, specs, trial, limits, {}))
            )
    with timed(phases_s, "probe"):
        size = kv_size(
            specs, block_size=settings.block_size, dtype=model.dtype, device=device,
            kv_memory_bytes=settings.kv_memory,
            max_context_tokens=context, context_is_wish=not settings.max_context_tokens,
            max_batch_size=limits.max_batch_size, gpu_memory_share=settings.gpu_memory_share,
            activation_bytes=activation_bytes or 0,
        )  # fmt: skip
        probe(model, backend, specs, block_size=settings.block_size, max_context_tokens=size.max_context_tokens)
    with timed(phases_s, "kv"):
        with_graphs = settings.cuda_graphs == "auto" and device.type == "cuda"
        runner = make_runner(settings, model, backend, specs, size, limits, phases_s, with_graphs=with_graphs)
    cache_bytes = size.num_blocks * sum(spec.num_bytes(settings.block_size, model.dtype) for spec in specs)
    log.info(memory_plan(model, cache_bytes, activation_bytes).line())
    with timed(phases_s, "warmup"):
        warm_up(runner, min(WARMUP_PROMPT_TOKENS, limits.max_step_tokens, size.max_context_tokens - 1))
    return runner


def make_runner(
    settings: EngineSettings,
    model: LoadedModel,
    backend: AttentionBackend,
    specs: tuple[LayerKVSpec, ...],
    size: KVSize,
    limits: StepLimits,
    phases_s: dict[str, float],
    *,
    with_graphs: bool = False,
) -> TorchModelRunner:
    """A runner with a cache of that size."""
    # With graphs, the block after the last is nobody's: what pads a recorded batch is written there.
    kv = allocate(specs, size.num_blocks + with_graphs, settings.block_size, model.dtype, model.device)
    input_batch = InputBatch(
        kv,
        max_tokens=limits.max_step_tokens,
        max_rows=limits.max_batch_size,
        max_blocks=-(-size.max_context_tokens // settings.block_size),
    )
    graphs = None
    if with_graphs:
        with timed(phases_s, "graphs"):
            graphs = record_graphs(
                DecodeGraphs(
                    model, kv, backend, record_on_cuda(model.device), max_batch_size=limits.max_batch_size,
                    max_blocks=input_batch.max_blocks, scratch_block=size.num_blocks,
                ),
                lazily=settings.lazy_graphs,
            )  # fmt: skip
    return TorchModelRunner(
        model, kv, backend, input_batch, runner_info(settings, model, backend, size, limits, phases_s), graphs
    )


def memory_plan(model: LoadedModel, cache_bytes: int, activation_bytes: int | None) -> MemoryPlan:
    """How the device's memory is divided, once the cache is allocated. A CPU gives its pages when first written to."""
    free_bytes = free_memory_bytes(model.device)
    to_come = cache_bytes if model.device.type == "cpu" else activation_bytes or 0
    return MemoryPlan(
        str(model.device), num_bytes_of(model.module), activation_bytes, cache_bytes, max(0, free_bytes - to_come)
    )


@torch.inference_mode()
def record_graphs(graphs: DecodeGraphs, *, lazily: bool) -> DecodeGraphs | None:
    """Record every batch size, or the smallest alone to see that it can be done; None, logged, when it cannot."""
    try:
        if lazily:
            graphs.record_smallest()
        else:
            with tqdm(total=len(graphs.sizes), desc="recording decode steps", unit="size", disable=None) as bar:
                graphs.record_all(lambda done, of: bar.update())
    except RuntimeError as error:
        log.warning("decode steps are not recorded: %s", error)
        return None
    return graphs


def runner_info(
    settings: EngineSettings,
    model: LoadedModel,
    backend: AttentionBackend,
    size: KVSize,
    limits: StepLimits,
    phases_s: dict[str, float],
) -> RunnerInfo:
    """What is told of the model. `phases_s` stays shared, so that later phases appear in it."""
    return RunnerInfo(
        model=settings.served_name or Path(settings.model).name,
        vocab_size=model.vocab_size,
        max_context_tokens=size.max_context_tokens,
        block_size=settings.block_size,
        num_blocks=size.num_blocks,
        max_batch_size=limits.max_batch_size,
        max_step_tokens=limits.max_step_tokens,
        eos_token_ids=model.eos_token_ids,
        sampling_defaults=model.sampling_defaults,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=backend.name,
        phases_s=phases_s,
    )


def context_limit(asked: int, trained: int) -> int:
    """The longest context to serve: what was asked for, 0 meaning all the model allows. Raises FailedPrecondition."""
    if asked and trained and asked > trained:
        raise FailedPrecondition(
            f"max_context_tokens: {asked} is more than the model's {trained}; lower it, or leave it 0",
            reason="CONTEXT_TOO_LONG",
        )
    limit = asked or trained
    if limit < 2:
        raise FailedPrecondition(
            f"max_context_tokens: {limit} is not allowed: at least 2"
            if asked
            else "max_context_tokens: the model's config.json names no longest context; set --max-context-tokens",
            reason="CONTEXT_UNKNOWN",
        )
    return limit


def warm_up(runner: TorchModelRunner, num_prompt_tokens: int) -> None:
    """Run a small prefill and a decode of both kinds of sampling, so that the first request finds everything ready.

    Writes into the first blocks of the pool, which nobody owns yet.
    """
    num_blocks = -(-(num_prompt_tokens + 1) // runner.info.block_size)
    sequence = Sequence(
        sequence_id=0, token_ids=[0] * num_prompt_tokens, num_prompt_tokens=num_prompt_tokens,
        sampling=replace(NEUTRAL, temperature=1.0, top_p=0.9, seed=0),
        stop=StopParams(max_tokens=2), block_table=list(range(num_blocks)),
    )  # fmt: skip
    run_step(runner, ScheduledBatch((ScheduledRow(sequence, num_prompt_tokens),)))
    sequence.num_computed_tokens = num_prompt_tokens
    sequence.token_ids.append(0)
    sequence.sampling = replace(NEUTRAL, seed=0)
    run_step(runner, ScheduledBatch((ScheduledRow(sequence, 1),)))


@contextmanager
def timed(phases_s: dict[str, float], name: str) -> Iterator[None]:
    """Record how long the block took under `name`."""
    started_s = time.perf_counter()
    yield
    phases_s[name] = phases_s.get(name, 0.0) + time.perf_counter() - started_s
