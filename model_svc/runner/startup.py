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

from model_svc.engine.batch import RunnerInfo, ScheduledBatch, ScheduledRow, run_step
from model_svc.engine.sequence import Sequence
from model_svc.grammar.bench import GrammarBench
from model_svc.grammar.vocabulary import load_vocabulary
from model_svc.host import usable_cores
from model_svc.model.adapters import AdapterBank
from model_svc.model.attention import AttentionBackend
from model_svc.model.attention_choice import choose_backend
from model_svc.model.compiled import WARM_TOKENS, compile_layers, compiling
from model_svc.model.device import gpu_uuids, resolve_device
from model_svc.model.loader import LoadedModel, load_model
from model_svc.model.paged import LayerKVSpec, PagedKV, allocate
from model_svc.model.probe import kv_specs
from model_svc.model.quantized import check_quantization
from model_svc.model.ranks import Ranks
from model_svc.model.sentence_files import embedding_defaults
from model_svc.runner.adapted_model import adapter_bytes, check_adapters, with_adapters
from model_svc.runner.decode_graphs import DecodeGraphs
from model_svc.runner.draft_model import DraftModel
from model_svc.runner.draft_start import check_draft_model, draft_settings, load_draft_model
from model_svc.runner.fast_layers import check_combination, probed, why_without_kernels, with_fast_layers
from model_svc.runner.gpu_start import prepare_gpu
from model_svc.runner.graph_start import make_graphs, record_graphs, why_not_recorded
from model_svc.runner.input_batch import InputBatch
from model_svc.runner.kv_cache import KVSize, kv_size
from model_svc.runner.limits import StepLimits, step_limits
from model_svc.runner.memory import (
    PROFILE_BLOCKS,
    StepMemory,
    kept_bytes,
    peak_bytes,
    run_largest_steps,
)
from model_svc.runner.memory_plan import memory_plan
from model_svc.runner.model_runner import TorchModelRunner
from model_svc.settings import EngineSettings
from tokenwire.errors import FailedPrecondition
from tokenwire.sampling import NEUTRAL, StopParams

log = logging.getLogger(__name__)

WARMUP_PROMPT_TOKENS = 8


Loader = Callable[[Path, torch.device, str, Ranks | None], LoadedModel]


def start_runner(
    settings: EngineSettings, phases_s: dict[str, float], ranks: Ranks | None = None, load: Loader = load_model
) -> TorchModelRunner:
    """Load `settings.model` (a folder), or with `ranks` a part of it, and make it ready. Adds its phases to `phases_s`.

    Sets torch's number of threads for the whole process. Raises NotFound and FailedPrecondition.
    """
    check_settings(settings)
    num_ranks = 1 if ranks is None else ranks.size
    torch.set_num_threads(settings.threads or max(1, usable_cores() // num_ranks))
    device = resolve_device(settings.device) if ranks is None else ranks.device
    limits = step_limits(settings.max_batch_size, settings.max_step_tokens, device.type)
    check_quantization(settings.quantization, device)
    check_quantization(settings.draft_quantization, device, "draft_quantization")
    if device.type == "cuda":
        with timed(phases_s, "device"):
            prepare_gpu(device)
    without_kernels = why_without_kernels(settings, device, ranks)
    with timed(phases_s, "attention"):
        backend = choose_backend(settings.attention, device, settings.block_size, without_kernels=without_kernels)
    with timed(phases_s, "load"):
        model = load(Path(settings.model), device, settings.dtype, ranks)
        model = with_fast_layers(settings, model, backend, natively=without_kernels is None)
        draft = load_draft_model(settings, model, backend, load, natively=without_kernels is None)
    with timed(phases_s, "vocabulary"):
        grammars = make_grammars(settings, model)
    context = context_limit(settings.max_context_tokens, model.max_context_tokens)
    step_memory: StepMemory | None = None
    with timed(phases_s, "probe"):
        specs = kv_specs(model)
        draft_specs = kv_specs(draft) if draft is not None else ()
    if settings.compile == "on":
        with timed(phases_s, "compile"):
            compile_layers(model)
            run_compiled(settings, model, backend, specs, limits, context)
    if device.type == "cuda":
        with timed(phases_s, "memory"):
            step_memory = try_largest(settings, model, backend, specs, limits, context, grammars)
            torch.cuda.empty_cache()  # what torch holds of the trial is not free for the cache, and is in `step_memory`
    with timed(phases_s, "probe"):
        size = kv_size(
            (*specs, *draft_specs), block_size=settings.block_size, dtype=model.dtype, device=device,
            kv_memory_bytes=settings.kv_memory,
            max_context_tokens=context, context_is_wish=not settings.max_context_tokens,
            max_batch_size=limits.max_batch_size, gpu_memory_share=settings.gpu_memory_share,
            step_bytes=step_memory.total_bytes + adapter_bytes(settings) if step_memory else 0, num_ranks=num_ranks,
        )  # fmt: skip
        if ranks is not None:
            size = KVSize(*ranks.smallest(size.num_blocks, size.max_context_tokens))
        model = probed(model, backend, specs, settings.block_size, size.max_context_tokens)
        model, bank = with_adapters(settings, model)
    with timed(phases_s, "kv"):
        kv = make_cache(settings, model, backend, specs, size)
        draft_model = make_draft_model(settings, model, draft, draft_specs, backend, size, limits)
    graphs = make_graphs(settings, model, backend, kv, size, limits, settings.adapter_slots if bank is not None else 0)
    if graphs is not None:
        with timed(phases_s, "graphs"):
            graphs = record_graphs(graphs, lazily=settings.lazy_graphs)
    elif device.type == "cuda":
        log.info("decode steps are not recorded: %s", why_not_recorded(settings, device, backend))
    runner = make_runner(settings, model, backend, kv, size, limits, phases_s, graphs, grammars, bank, draft_model)
    models = [model] if draft is None else [model, draft]
    memory_plan(settings, models, (*specs, *draft_specs), size, step_memory).log()
    with timed(phases_s, "warmup"):
        warm_up(runner, min(WARMUP_PROMPT_TOKENS, limits.max_step_tokens, size.max_context_tokens - 1))
    return runner


def check_settings(settings: EngineSettings) -> None:
    """Raise FailedPrecondition for settings that exclude each other. Cheap: before ranks start and anything loads."""
    check_combination(settings)
    check_adapters(settings)
    check_draft_model(settings)


def make_cache(
    settings: EngineSettings,
    model: LoadedModel,
    backend: AttentionBackend,
    specs: tuple[LayerKVSpec, ...],
    size: KVSize,
) -> PagedKV:
    """A cache of that size. With graphs a block more, nobody's: what pads a recorded batch is written there."""
    num_blocks = size.num_blocks + (why_not_recorded(settings, model.device, backend) is None)
    return allocate(specs, num_blocks, settings.block_size, model.dtype, model.device)


def make_draft_model(
    settings: EngineSettings,
    model: LoadedModel,
    draft: LoadedModel | None,
    specs: tuple[LayerKVSpec, ...],
    backend: AttentionBackend,
    size: KVSize,
    limits: StepLimits,
) -> DraftModel | None:
    """The draft model over a cache of its own with as many blocks, shown to be computed rightly, and warm."""
    if draft is None:
        return None
    context = min(size.max_context_tokens, draft.max_context_tokens or size.max_context_tokens)
    draft = probed(draft, backend, specs, settings.block_size, context)
    kv = allocate(specs, size.num_blocks, settings.block_size, draft.dtype, draft.device)
    own = KVSize(size.num_blocks, context)
    runner = make_runner(draft_settings(settings), draft, backend, kv, own, limits, {}, None)
    warm_up(runner, min(WARMUP_PROMPT_TOKENS, limits.max_step_tokens, context - 1))
    return DraftModel(runner, model.vocab_size)


def make_runner(
    settings: EngineSettings,
    model: LoadedModel,
    backend: AttentionBackend,
    kv: PagedKV,
    size: KVSize,
    limits: StepLimits,
    phases_s: dict[str, float],
    graphs: DecodeGraphs | None,
    grammars: GrammarBench | None = None,
    bank: AdapterBank | None = None,
    draft_model: DraftModel | None = None,
) -> TorchModelRunner:
    """A runner over that cache."""
    input_batch = InputBatch(
        kv,
        max_tokens=limits.max_step_tokens,
        max_rows=limits.max_batch_size,
        max_blocks=-(-size.max_context_tokens // settings.block_size),
        num_adapter_slots=settings.adapter_slots if bank is not None else 0,
    )
    info = runner_info(settings, model, backend, size, limits, phases_s)
    return TorchModelRunner(model, kv, backend, input_batch, info, graphs, grammars, bank, draft_model)


def make_grammars(settings: EngineSettings, model: LoadedModel) -> GrammarBench | None:
    """What constrained sequences need; None, logged, where the model's folder does not say which text its tokens make.

    The gRPC process finds the same and refuses such requests.
    """
    try:
        return GrammarBench(load_vocabulary(Path(settings.model), model.vocab_size))
    except FailedPrecondition as error:
        log.info("outputs cannot be constrained: %s", error)
        return None


def try_largest(
    settings: EngineSettings,
    model: LoadedModel,
    backend: AttentionBackend,
    specs: tuple[LayerKVSpec, ...],
    limits: StepLimits,
    max_context_tokens: int,
    grammars: GrammarBench | None,
) -> StepMemory:
    """What the largest steps take on a GPU, and the graphs, over a few blocks that are given back afterwards."""
    size = KVSize(PROFILE_BLOCKS, max_context_tokens)
    kv = make_cache(settings, model, backend, specs, size)
    runner = make_runner(settings, model, backend, kv, size, limits, {}, None, grammars)
    activations = peak_bytes(model.device, lambda: run_largest_steps(runner))
    graphs = make_graphs(settings, model, backend, kv, size, limits)
    if graphs is None:
        return StepMemory(activations, 0)
    one_vocabulary = model.vocab_size * model.dtype.itemsize
    return StepMemory(
        activations,
        kept_bytes(model.device, graphs.record_largest) + sum(graphs.sizes[:-1]) * one_vocabulary,
    )


def run_compiled(
    settings: EngineSettings,
    model: LoadedModel,
    backend: AttentionBackend,
    specs: tuple[LayerKVSpec, ...],
    limits: StepLimits,
    max_context_tokens: int,
) -> None:
    """Let compiled layers be compiled: steps as they are served, over a few blocks that are given back afterwards."""
    size = KVSize(max(WARM_TOKENS) + 1, max_context_tokens)
    kv = make_cache(settings, model, backend, specs, size)
    runner = make_runner(settings, model, backend, kv, size, limits, {}, None)
    with compiling():
        for num_tokens in WARM_TOKENS:
            warm_up(runner, min(num_tokens, limits.max_step_tokens, max_context_tokens - 1))


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
        gpus=gpu_uuids(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=backend.name,
        phases_s=phases_s,
        num_adapter_slots=settings.adapter_slots if settings.takes_adapters else 0,
        max_adapter_bytes=adapter_bytes(settings),
        takes_drafts=True,
        embedding_size=model.hidden_size,
        pooling=embedding_defaults(Path(settings.model)).pooling_of(generates=True) if model.hidden_size else None,
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
        stop=StopParams(max_tokens=2), slot=0, block_table=list(range(num_blocks)),
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
