"""How the device's memory is divided once a model is there, told at start as a table. Decides nothing."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from model_svc.model.loader import LoadedModel
from model_svc.model.paged import LayerKVSpec
from model_svc.runner.adapted_model import adapter_bytes
from model_svc.runner.kv_cache import KVSize
from model_svc.runner.memory import StepMemory, free_memory_bytes, mib
from model_svc.settings import EngineSettings
from tokenwire.logs import table

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What becomes of a device's memory, in bytes."""

    device: str
    weights: int
    """The draft model's too, as with `cache`."""
    steps: StepMemory | None
    """None: not measured."""
    adapters: int
    """What they may take."""
    num_blocks: int
    block_size: int
    cache: int
    free: int
    """Once all the others are in use."""

    def log(self) -> None:
        """Tell it: to people a line for each part, to programs one record."""
        steps = self.steps
        log.info(
            "memory of %s", self.device,
            extra=table(
                list(self._lines()), weights_bytes=self.weights,
                step_bytes=steps.activation_bytes if steps is not None else None,
                graph_bytes=steps.graph_bytes if steps is not None else None,
                adapter_bytes=self.adapters, kv_bytes=self.cache, kv_blocks=self.num_blocks,
                kv_tokens=self.num_blocks * self.block_size, free_bytes=self.free,
            ),
        )  # fmt: skip

    def _lines(self) -> Iterator[str]:
        yield line("weights", mib(self.weights))
        if self.steps is None:
            yield line("largest step", "not measured")
        else:
            yield line("largest step", mib(self.steps.activation_bytes))
            yield line("decode graphs", mib(self.steps.graph_bytes))
        if self.adapters:
            yield line("adapters", mib(self.adapters))
        held = f"{self.num_blocks} blocks, {self.num_blocks * self.block_size} tokens"
        yield f"{line('KV cache', mib(self.cache))}  {held}"
        yield line("free", mib(self.free))


def line(name: str, size: str) -> str:
    """A part and its size, as the table has it."""
    return f"{name:<13}  {size:>12}"


def memory_plan(
    settings: EngineSettings,
    models: Sequence[LoadedModel],
    specs: Sequence[LayerKVSpec],
    size: KVSize,
    steps: StepMemory | None,
) -> MemoryPlan:
    """How the device's memory is divided, once cache and graphs are there. `models`, `specs`: the draft model's too.

    A cache on a CPU is not there yet: its pages become real when first written.
    """
    model, adapters = models[0], adapter_bytes(settings)
    cache = size.num_blocks * sum(spec.num_bytes(settings.block_size, model.dtype) for spec in specs)
    to_come = cache
    if steps is not None:
        to_come = steps.total_bytes if settings.lazy_graphs else steps.activation_bytes
    return MemoryPlan(
        str(model.device), sum(num_bytes_of(each.module) for each in models), steps, adapters, size.num_blocks,
        settings.block_size, cache, max(0, free_memory_bytes(model.device) - adapters - to_come),
    )  # fmt: skip


def num_bytes_of(module: torch.nn.Module) -> int:
    """Memory of a model's weights, shared ones counted once."""
    tensors = {t.untyped_storage().data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
