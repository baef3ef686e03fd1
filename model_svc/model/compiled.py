"""Decoder layers compiled by torch.compile: the code of one serves all that are alike; attention stays outside.

Regional: what repeats is compiled, not the whole model, for any number of tokens (a single one apart, as torch has it).
Layers are found as the list of as many modules as the config names layers. Knows neither the runner nor what a layer
computes.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import AttentionInterface

from model_svc.model.attention import ATTENTION_NAME, paged_attention
from model_svc.model.loader import LoadedModel
from tokenwire.errors import FailedPrecondition

log = logging.getLogger(__name__)

WARM_TOKENS = (2, 16)
"""Numbers of tokens that have to be run, besides one, so that all is compiled: few, for which int8 layers on a CPU have
code of their own, and more. Others share their code."""


def compile_layers(model: LoadedModel) -> int:
    """Have the decoder layers of `model` compiled when they are first called; how many it is.

    After `kv_specs`. Raises FailedPrecondition with reason COMPILE_FAILED.
    """
    layers = decoder_layers(model)
    if not layers:
        raise failed(f"{type(model.module).__name__} has no list of {model.num_layers} layers")
    # Tracing stops where this is called: what it computes with comes from the step, not from its arguments.
    outside = torch.compiler.disable(paged_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(ATTENTION_NAME, outside)
    for layer in layers:
        layer.compile(dynamic=True)
    log.info("compile: %d layers", len(layers))
    return len(layers)


@contextmanager
def compiling() -> Iterator[None]:
    """What goes wrong in the first calls, as the error that an operator reads."""
    try:
        yield
    except Exception as error:  # no compiler on this machine, or whatever a model's unknown code makes of tracing
        reason = (str(error).strip().splitlines() or [""])[0]
        raise failed(f"{type(error).__name__}: {reason}") from error


def decoder_layers(model: LoadedModel) -> list[nn.Module]:
    """The modules that repeat, one per layer; none where there is no such list."""
    for module in model.module.modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.num_layers > 0:
            return list(module)
    return []


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Let nothing in `module` be compiled code for as long as the block runs."""
    compiled = [(each, each._compiled_call_impl) for each in module.modules() if each._compiled_call_impl is not None]
    for each, _ in compiled:
        each._compiled_call_impl = None
    try:
        yield
    finally:
        for each, code in compiled:
            each._compiled_call_impl = code


def failed(detail: str) -> FailedPrecondition:
    """The error for a model that cannot be compiled here."""
    return FailedPrecondition(
        f"compile: the model's layers cannot be compiled ({detail}); leave --compile off", reason="COMPILE_FAILED"
    )
