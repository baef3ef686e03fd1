"""What computes a model's layers: merged, quantised, packed for the CPU kernels, or all in one call.

Decided from settings and device, and shown to be right by the probe. Knows the order of these things; each is done
elsewhere.
"""

import logging
from dataclasses import replace

import torch

from model_svc.model.attention import AttentionBackend
from model_svc.model.loader import LoadedModel
from model_svc.model.merged_linear import merge_linears
from model_svc.model.native_decoder import native_decoder
from model_svc.model.native_linear import pack_linears
from model_svc.model.paged import LayerKVSpec
from model_svc.model.probe import probe
from model_svc.model.quantized import quantize
from model_svc.model.ranks import Ranks
from model_svc.native.library import why_unavailable
from model_svc.settings import EngineSettings
from tokenwire.errors import FailedPrecondition

log = logging.getLogger(__name__)


def check_combination(settings: EngineSettings) -> None:
    """Raise FailedPrecondition for settings that exclude each other."""
    if settings.tensor_parallel > 1 and (settings.merge_linears == "on" or settings.quantization != "none"):
        raise FailedPrecondition(
            "tensor_parallel: layers of several ranks are neither merged nor quantised; leave merge_linears auto and "
            "quantization none",
            reason="RANKS_NOT_MERGED_OR_QUANTISED",
        )
    if settings.tensor_parallel > 1 and settings.compile == "on":
        raise FailedPrecondition(
            "compile: layers of several ranks are not compiled; leave --compile off or --tensor-parallel 1",
            reason="RANKS_NOT_COMPILED",
        )
    if settings.tensor_parallel > 1 and settings.overlap == "on":
        raise FailedPrecondition(
            "overlap: steps of several ranks (tensor_parallel) are not overlapped; leave it auto",
            reason="RANKS_NOT_OVERLAPPED",
        )


def why_without_kernels(settings: EngineSettings, device: torch.device, ranks: Ranks | None) -> str | None:
    """Why the project's CPU kernels are not used; None where they are.

    Raises FailedPrecondition where they are asked for in vain.
    """
    why = obstacle_to_kernels(settings, device, ranks)
    if why is not None and settings.cpu_kernels == "on":
        raise FailedPrecondition(f"cpu_kernels: they cannot be used: {why}", reason="CPU_KERNELS_UNAVAILABLE")
    if device.type == "cpu":
        log.info("CPU kernels: %s", "in use" if why is None else f"not in use: {why}")
    return why


def obstacle_to_kernels(settings: EngineSettings, device: torch.device, ranks: Ranks | None) -> str | None:
    """What rules the CPU kernels out, if anything does."""
    if settings.cpu_kernels == "off":
        return "cpu_kernels is off"
    if settings.compile == "on":
        return "compile is on"
    if device.type != "cpu":
        return f"the device is {device}"
    if ranks is not None:
        return "the model is split over several ranks"
    if settings.dtype == "float16":
        return "they compute in float32 and bfloat16, not in float16"
    return why_unavailable()


def with_fast_layers(
    settings: EngineSettings, model: LoadedModel, backend: AttentionBackend, *, natively: bool
) -> LoadedModel:
    """The model with its linear layers merged, quantised and packed as settings and device have it."""
    on_ranks = settings.tensor_parallel > 1
    if settings.merge_linears == "on" or (
        settings.merge_linears == "auto" and not on_ranks and (natively or model.device.type == "cuda")
    ):
        merge_linears(model)
    quantize(model, settings.quantization, natively=natively and model.dtype == torch.bfloat16)
    if not natively:
        return model
    pack_linears(model.module)
    decoder = native_decoder(model) if backend.name == "native" else None
    log.info("forward pass: %s", "CPU kernels" if decoder else "transformers, with packed linear layers")
    return replace(model, decoder=decoder)


def probed(
    model: LoadedModel,
    backend: AttentionBackend,
    specs: tuple[LayerKVSpec, ...],
    block_size: int,
    max_context_tokens: int,
) -> LoadedModel:
    """The model, shown to be served rightly; without its decoder if that is what gives other numbers."""
    try:
        probe(model, backend, specs, block_size=block_size, max_context_tokens=max_context_tokens)
        return model
    except FailedPrecondition as error:
        if model.decoder is None:
            raise
        log.warning("forward pass: transformers, because the CPU kernels give other numbers: %s", error)
    model = replace(model, decoder=None)
    probe(model, backend, specs, block_size=block_size, max_context_tokens=max_context_tokens)
    return model
