"""Whether decode steps are recorded, and recording them at start.

Knows settings, device and backend; what is recorded, and when one that was left out is, is `decode_graphs`' business.
"""

import logging

import torch
from tqdm import tqdm

from model_svc.model.attention import AttentionBackend
from model_svc.model.loader import LoadedModel
from model_svc.model.paged import PagedKV
from model_svc.runner.decode_graphs import DecodeGraphs
from model_svc.runner.graph import record_on_cuda
from model_svc.runner.kv_cache import KVSize
from model_svc.runner.limits import StepLimits
from model_svc.settings import EngineSettings

log = logging.getLogger(__name__)


def why_not_recorded(settings: EngineSettings, device: torch.device, backend: AttentionBackend) -> str | None:
    """What keeps decode steps from being recorded; None where they are to be."""
    if device.type != "cuda":
        return f"the device is {device}"
    if settings.cuda_graphs == "off":
        return "cuda_graphs is off"
    if settings.tensor_parallel > 1:
        return "the model is split over several ranks"
    if backend.gathers:  # a recorded step would copy the longest context, and with it what rows before have left there
        return f"attention {backend.name} gathers keys and values"
    return None


def make_graphs(
    settings: EngineSettings,
    model: LoadedModel,
    backend: AttentionBackend,
    kv: PagedKV,
    size: KVSize,
    limits: StepLimits,
    num_adapter_slots: int = 0,
) -> DecodeGraphs | None:
    """Graphs that are still to be recorded, where they are wanted."""
    if why_not_recorded(settings, model.device, backend) is not None:
        return None
    return DecodeGraphs(
        model, kv, backend, record_on_cuda(model.device), max_batch_size=limits.max_batch_size,
        max_blocks=-(-size.max_context_tokens // settings.block_size), scratch_block=size.num_blocks,
        num_adapter_slots=num_adapter_slots,
    )  # fmt: skip


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
