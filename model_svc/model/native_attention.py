"""Attention on the project's CPU kernels, which read keys and values where they lie in the paged cache.

Knows no model. What the kernels lack, soft cap and sinks, goes to the reference backend.
"""

import torch
from torch import Tensor

from model_svc.model.attention import AttentionOptions, SdpaBackend
from model_svc.model.paged import LayerKV, PagedStep
from model_svc.native import kernels


class NativeBackend:
    """Nothing is gathered, but for soft cap and sinks: each row's keys are read through its block table."""

    name = "native"
    gathers = True

    def __init__(self) -> None:
        self._reference = SdpaBackend()

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: LayerKV, step: PagedStep, options: AttentionOptions
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        if options.softcap is not None or options.sinks is not None:
            return self._reference.attend(query, key, value, layer, step, options)
        queries = query[0].transpose(0, 1).contiguous()
        num_tokens, num_heads, key_size = queries.shape
        output = torch.empty(num_tokens, num_heads * layer.value.shape[-1], dtype=query.dtype)
        scale = key_size**-0.5 if options.scale is None else options.scale
        attend_paged(queries, layer, step, scale, options.window, output)
        return output.view(1, num_tokens, num_heads, -1)


def attend_paged(
    query: Tensor, layer: LayerKV, step: PagedStep, scale: float, window: int | None, output: Tensor
) -> None:
    """Attention of query [T, num_heads, key_size] over `layer`, into `output` [T, num_heads * value_size]."""
    kernels.attention(
        query, layer.key, layer.value, step.table, step.lengths, step.query_starts, scale, window or 0, output
    )
