"""The flash backend: torch's varlen_attn reading keys and values through the block table.

Stock torch pages only with FlashAttention 3, which comes from a package of its own (`flash_attn_interface`); whether it
is there and computes rightly is found by a real call (see `attention_choice`). A torch whose varlen_attn takes no block
table, such as 2.11, is refused. It has neither soft cap nor sinks.
"""

from inspect import signature

import torch
from torch import Tensor
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn

from model_svc.model.attention import AttentionOptions
from model_svc.model.paged import LayerKV, PagedStep
from tokenwire.errors import FailedPrecondition


class FlashBackend:
    """See `AttentionBackend`. Making one turns FlashAttention 3 on for all of torch; raises where it is not there."""

    name = "flash"
    gathers = False

    def __init__(self, device: torch.device) -> None:
        del device
        if missing := {"block_table", "enable_gqa", "seqused_k"} - signature(varlen_attn).parameters.keys():
            lacks = " and no ".join(sorted(missing))
            raise FailedPrecondition(f"varlen_attn of torch {torch.__version__} takes no {lacks}")
        activate_flash_attention_impl("FA3")

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: LayerKV, step: PagedStep, options: AttentionOptions
    ) -> Tensor:
        """See `AttentionBackend.attend`. Raises FailedPrecondition for a soft cap or sinks."""
        if options.softcap is not None or options.sinks is not None:
            raise FailedPrecondition("attention: flash computes neither soft cap nor sinks; use triton or sdpa")
        table, lengths, query_starts = step.in_int32
        output = varlen_attn(
            query[0].transpose(0, 1), layer.key, layer.value, query_starts, None, max(step.num_new),
            max(step.contexts), scale=options.scale, enable_gqa=True, seqused_k=lengths, block_table=table,
            window_size=(-1 if options.window is None else options.window - 1, 0),
        )  # fmt: skip
        assert isinstance(output, Tensor)  # not a pair: nothing was asked for beside it
        return output.unsqueeze(0)
