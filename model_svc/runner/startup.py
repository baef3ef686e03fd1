"""From settings to a runner that is ready: device, weights, probe, cache, warm-up, each phase timed.

Knows the order of these things; each is done elsewhere.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from model_svc.engine.batch import RunnerInfo, ScheduledBatch, ScheduledRow, run_step
from model_svc.engine.sequence import Sequence
from model_svc.model.attention import AttentionBackend, make_backend
from model_svc.model.device import resolve_device
from model_svc.model.loader import LoadedModel, load_model
from model_svc.model.merged_linear import merge_linears
from model_svc.model.paged import allocate
from model_svc.model.probe import kv_specs, probe
from model_svc.model.quantized import check_quantization, quantize
from model_svc.runner.host import usable_cores
from model_svc.runner.input_batch import InputBatch
from model_svc.runner.kv_cache import KVSize, kv_size
from model_svc.runner.limits import StepLimits, step_limits
from model_svc.runner.model_runner import TorchModelRunner
from model_svc.settings import EngineSettings
from tokenwire.errors import FailedPrecondition
from tokenwire.sampling import NEUTRAL, StopParams

WARMUP_PROMPT_TOKENS = 8


def start_runner(settings: EngineSettings, phases_s: dict[str, float]) -> TorchModelRunner:
    """Load `settings.model` (a folder) and make it ready to run. Adds its phases to `phases_s`.

    Sets torch's number of threads for the whole process. Raises NotFound and FailedPrecondition.
    """
    torch.set_num_threads(settings.threads or usable_cores())
    device = resolve_device(settings.device)
    limits = step_limits(settings.max_batch_size, settings.max_step_tokens, device.type)
    backend = make_backend(settings.attention)
    check_quantization(settings.quantization, device)
    with timed(phases_s, "load"):
        model = load_model(Path(settings.model), device, settings.dtype)
        if settings.merge_linears == "on" or (settings.merge_linears == "auto" and device.type == "cuda"):
            merge_linears(model)
        quantize(model, settings.quantization)
    with timed(phases_s, "probe"):
        specs = kv_specs(model)
        size = kv_size(
            specs, block_size=settings.block_size, dtype=model.dtype, device=device,
            kv_memory_bytes=settings.kv_memory,
            max_context_tokens=context_limit(settings.max_context_tokens, model.max_context_tokens),
            context_is_wish=not settings.max_context_tokens, max_batch_size=limits.max_batch_size,
        )  # fmt: skip
        probe(model, backend, specs, block_size=settings.block_size, max_context_tokens=size.max_context_tokens)
    with timed(phases_s, "kv"):
        kv = allocate(specs, size.num_blocks, settings.block_size, model.dtype, device)
    input_batch = InputBatch(
        kv,
        max_tokens=limits.max_step_tokens,
        max_rows=limits.max_batch_size,
        max_blocks=-(-size.max_context_tokens // settings.block_size),
    )
    runner = TorchModelRunner(
        model, kv, backend, input_batch, runner_info(settings, model, backend, size, limits, phases_s)
    )
    with timed(phases_s, "warmup"):
        warm_up(runner, min(WARMUP_PROMPT_TOKENS, limits.max_step_tokens, size.max_context_tokens - 1))
    return runner


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
    phases_s[name] = time.perf_counter() - started_s
