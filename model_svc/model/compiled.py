"""Decoder layers compiled by torch.compile: the code of one serves all that are alike; attention stays outside.

Regional: what repeats is compiled, not the whole model, for any number of tokens (a single one apart, as torch has it).
Layers are found as the list of as many modules as the config names layers. Knows neither the runner nor what a layer
computes.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from model_svc.model.attention import ATTENTION_NAME, AttentionBackend, paged_attention
from model_svc.model.loader import LoadedModel
from model_svc.model.paged import LayerKVSpec, allocate, plan_step, positions_and_slots, query_starts_of
from tokenwire.errors import FailedPrecondition

log = logging.getLogger(__name__)

WARM_TOKENS = (1, 2, 16)
"""Numbers of tokens that are run so that all is compiled: one; few, for which int8 layers on a CPU have code of their
own; and more. Others share their code."""


def compile_layers(
    model: LoadedModel, backend: AttentionBackend, specs: tuple[LayerKVSpec, ...], block_size: int
) -> int:
    """Compile the decoder layers of `model` in place and run them once; how many it was. Takes half a minute.

    After `kv_specs`. Raises FailedPrecondition with reason COMPILE_FAILED.
    """
    layers = decoder_layers(model)
    if not layers:
        raise failed(f"{type(model.module).__name__} has no list of {model.num_layers} layers")
    # Tracing stops where this is called: what it computes with comes from the step, not from its arguments.
    AttentionInterface.register(ATTENTION_NAME, torch.compiler.disable(paged_attention))  # type: ignore[no-untyped-call]
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        _run(model, backend, specs, block_size)
    except Exception as error:  # no compiler on this machine, or whatever a model's unknown code makes of tracing
        reason = (str(error).strip().splitlines() or [""])[0]
        raise failed(f"{type(error).__name__}: {reason}") from error
    log.info("compile: %d layers", len(layers))
    return len(layers)


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


@torch.inference_mode()
def _run(model: LoadedModel, backend: AttentionBackend, specs: tuple[LayerKVSpec, ...], block_size: int) -> None:
    """Steps of one sequence with each of WARM_TOKENS, over a small cache of their own."""
    blocks = -(-max(WARM_TOKENS) // block_size)
    kv = allocate(specs, blocks, block_size, model.dtype, model.device)
    table = np.arange(blocks, dtype=np.int64)[None]

    def tensor(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> torch.Tensor:
        return torch.from_numpy(values).to(model.device)

    for count in WARM_TOKENS:
        num_new, num_computed = np.array([count], dtype=np.int64), np.zeros(1, dtype=np.int64)
        positions, slots = positions_and_slots(num_computed, num_new, table, block_size)
        step = plan_step(
            kv, num_computed, num_new, tensor(slots), tensor(table), tensor(num_new), tensor(query_starts_of(num_new))
        )  # fmt: skip
        last = tensor(num_new - 1)
        model.logits(torch.zeros_like(tensor(positions)), tensor(positions), last, step, backend)
