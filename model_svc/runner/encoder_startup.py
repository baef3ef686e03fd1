"""From settings to an encoder's runner that is ready: device, weights, probe, warm-up, each phase timed.

Knows the order of these things; each is done elsewhere.
"""

import logging
from pathlib import Path

import torch

from model_svc.engine.batch import OutOfMemory, RunnerInfo, ScheduledBatch, ScheduledRow, run_step
from model_svc.engine.sequence import Sequence
from model_svc.host import usable_cores
from model_svc.model.device import gpu_uuids, resolve_device
from model_svc.model.encoder import Encoder, load_encoder
from model_svc.model.encoder_attention import EncoderBackend, encoder_backend
from model_svc.model.encoder_probe import probe_encoder
from model_svc.model.loader import unsupported
from model_svc.model.native_linear import pack_linears
from model_svc.model.sentence_files import EmbeddingDefaults, embedding_defaults
from model_svc.runner.encoder_runner import EncoderRunner
from model_svc.runner.fast_layers import why_without_kernels
from model_svc.runner.gpu_start import prepare_gpu
from model_svc.runner.limits import StepLimits, step_limits
from model_svc.runner.startup import context_limit, timed
from model_svc.settings import EngineSettings
from tokenwire.embeddings import EmbeddingOptions, Pooling
from tokenwire.errors import FailedPrecondition
from tokenwire.sampling import NEUTRAL, StopParams

log = logging.getLogger(__name__)

WARMUP_TOKENS = (3, 8)
"""Lengths of the sequences that are embedded before the first request."""


def start_encoder(settings: EngineSettings, phases_s: dict[str, float]) -> EncoderRunner:
    """Load the encoder `settings.model` (a folder) and make it ready. Adds its phases to `phases_s`.

    Sets torch's number of threads for the whole process. Raises NotFound and FailedPrecondition.
    """
    check_settings(settings)
    torch.set_num_threads(settings.threads or usable_cores())
    device = resolve_device(settings.device)
    if device.type == "cuda":
        with timed(phases_s, "device"):
            prepare_gpu(device)
    folder = Path(settings.model)
    without_kernels = why_without_kernels(settings, device, None)
    with timed(phases_s, "load"):
        defaults = embedding_defaults(folder)
        if defaults.obstacle:
            raise unsupported(folder, defaults.obstacle)
        model = load_encoder(folder, device, dtype_of(settings.dtype, device))
        if without_kernels is None:
            pack_linears(model.module)
    with timed(phases_s, "attention"):
        backend = encoder_backend(device, model.dtype)
        log.info("attention: %s, over whole sequences", backend.name)
    trained = min(defaults.max_tokens or model.max_tokens, model.max_tokens)
    context = context_limit(settings.max_context_tokens or trained, model.max_tokens)
    limits = encoder_limits(settings, context, device.type)
    with timed(phases_s, "probe"):
        probe_encoder(model, backend, min(context, limits.max_step_tokens))
    runner = EncoderRunner(model, backend, info_of(settings, model, backend, defaults, context, limits, phases_s))
    with timed(phases_s, "warmup"):
        if device.type == "cuda":
            run_largest_step(runner)
        run_step(runner, batch_of([min(length, context) for length in WARMUP_TOKENS]))
    return runner


def check_settings(settings: EngineSettings) -> None:
    """Raise FailedPrecondition for a setting that encoders have no use for."""
    fine = {
        "tensor_parallel": (1,), "compile": ("off",), "quantization": ("none",), "kv_memory": (0,),
        "merge_linears": ("auto", "off"), "attention": ("auto",), "speculation": ("auto", "off"), "draft_model": ("",),
        "draft_quantization": ("none",), "speculation_adaptive": (True,),
        "speculation_length": (EngineSettings.speculation_length,), "adapters": ((),), "adapter_folder": ("",),
    }  # fmt: skip
    for name, allowed in fine.items():
        value = getattr(settings, name)
        if value not in allowed:
            fine_values = " or ".join(map(repr, allowed))
            raise FailedPrecondition(
                f"{name}: {value!r} is not for an encoder, which this model is: leave it {fine_values}",
                reason="NOT_FOR_ENCODERS",
            )


def dtype_of(name: str, device: torch.device) -> str:
    """The number format: float32 where a CPU may choose, since bfloat16 moves vectors more than a model's own library.

    docs/decisions/0018-encoders-run-packed-and-whole.md has the numbers.
    """
    return "float32" if name == "auto" and device.type == "cpu" else name


def encoder_limits(settings: EngineSettings, context: int, device_type: str) -> StepLimits:
    """The limits asked for; where they are left open, a step holds a longest sequence."""
    limits = step_limits(settings.max_batch_size, settings.max_step_tokens, device_type)
    if settings.max_step_tokens:
        return limits
    return StepLimits(limits.max_batch_size, max(limits.max_step_tokens, context))


def info_of(
    settings: EngineSettings,
    model: Encoder,
    backend: EncoderBackend,
    defaults: EmbeddingDefaults,
    context: int,
    limits: StepLimits,
    phases_s: dict[str, float],
) -> RunnerInfo:
    """What is told of the encoder. A block stands for a sequence's place: there is no cache."""
    return RunnerInfo(
        model=settings.served_name or Path(settings.model).name,
        vocab_size=model.vocab_size,
        max_context_tokens=context,
        block_size=context + 1,
        num_blocks=2 * limits.max_batch_size,
        max_batch_size=limits.max_batch_size,
        max_step_tokens=limits.max_step_tokens,
        eos_token_ids=(),
        sampling_defaults=NEUTRAL,
        device=str(model.device),
        gpus=gpu_uuids(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=backend.name,
        phases_s=phases_s,
        generates=False,
        embedding_size=model.hidden_size,
        pooling=defaults.pooling_of(generates=False),
        whole_sequences=True,
    )


def batch_of(lengths: list[int]) -> ScheduledBatch:
    """A step of sequences that mean nothing, of these lengths."""
    rows = []
    for slot, length in enumerate(lengths):
        sequence = Sequence(
            sequence_id=-2 - slot, token_ids=[0] * length, num_prompt_tokens=length, sampling=NEUTRAL,
            stop=StopParams(max_tokens=0), slot=slot, embedding=EmbeddingOptions(Pooling.MEAN),
        )  # fmt: skip
        rows.append(ScheduledRow(sequence, length))
    return ScheduledBatch(tuple(rows))


def run_largest_step(runner: EncoderRunner) -> None:
    """A step with the most tokens. Raises FailedPrecondition where the device has no memory for it."""
    info = runner.info
    longest = min(info.max_context_tokens, info.max_step_tokens)
    lengths = [longest] * min(info.max_step_tokens // longest, info.max_batch_size)
    try:
        run_step(runner, batch_of(lengths))
    except OutOfMemory as error:
        raise FailedPrecondition(
            f"max_step_tokens: {info.device} has no memory for the largest step ({info.max_step_tokens} tokens): "
            f"{error}; lower --max-step-tokens",
            reason="STEP_MEMORY",
        ) from error
