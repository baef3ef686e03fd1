"""Paged attention for models from `transformers`, through its AttentionInterface.

A model loaded with `attn_implementation=ATTENTION_NAME` calls `paged_attention` in every layer. What that needs besides
the tensors, the step's plan and the backend, comes through the model's `Handover`: there is no global state. The name
is deliberately absent from the AttentionMaskInterface: `transformers` then builds no mask.

A backend writes nothing: `paged_attention` has put the new keys and values into the cache before it is called.
Knows no model; whether a model really calls this, once per layer and with the meaning assumed, is for `probe` to find.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from model_svc.model.handover import handed_to
from model_svc.model.paged import DecodeGroup, LayerKV, PagedStep, PrefillChunk

ATTENTION_NAME = "tokenwire_paged"


class AttentionOptions(NamedTuple):
    """What a layer asks of attention besides the tensors."""

    scale: float | None
    """Factor on the scores; None: 1 / sqrt(key size)."""
    window: int | None
    """A token sees this many positions, itself included; None: all before it."""
    softcap: float | None
    """Scores become softcap * tanh(score / softcap)."""
    sinks: Tensor | None
    """[num_heads]: a score per head that takes weight and gives no value."""


class AttentionBackend(Protocol):
    """Computes attention over the paged cache."""

    name: str
    gathers: bool
    """Whether it copies keys and values side by side, for all of `PagedStep.contexts`, before it attends."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: LayerKV, step: PagedStep, options: AttentionOptions
    ) -> Tensor:
        """The step's attention output, [1, T, num_heads, value_size].

        query [1, num_heads, T, key_size]; key, value [1, num_kv_heads, T, size]: the new tokens', already in `layer`.
        """


class AttentionCall(NamedTuple):
    """What a forward pass hands to every call of `paged_attention`."""

    step: PagedStep
    backend: AttentionBackend


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What `transformers` calls in each layer. Writes the new keys and values into the cache, then attends.

    Shapes as in `AttentionBackend.attend`; an `AttentionCall` is handed to `module`. Arguments that would change the
    result and are not taken here make the probe refuse the model at load.
    """
    step, backend = handed_to(module)
    layer = step.kv.layers[module.layer_idx]
    layer.key_slots.index_copy_(0, step.slots, key[0].transpose(0, 1))
    layer.value_slots.index_copy_(0, step.slots, value[0].transpose(0, 1))
    options = AttentionOptions(scaling, sliding_window, softcap, s_aux)
    return backend.attend(query, key, value, layer, step, options), None


class SdpaBackend:
    """The reference: torch's scaled_dot_product_attention over gathered blocks, on any device.

    Decodes of similar context attend in one call, with the query heads that share a key head as its queries, so that
    keys are never repeated. Each chunk of a prompt is a call of its own. Soft cap and sinks, which that function lacks,
    take a path spelled out in `attend_explicitly`.
    """

    name = "sdpa"
    gathers = True

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: LayerKV, step: PagedStep, options: AttentionOptions
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        parts = [self._decode(query, layer, group, options) for group in step.decodes]
        parts += [self._prefill(query, key, value, layer, chunk, options) for chunk in step.chunks]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)

    def _decode(self, query: Tensor, layer: LayerKV, group: DecodeGroup, options: AttentionOptions) -> Tensor:
        """[N, num_heads, value_size]."""
        num_rows, num_heads = group.stop - group.start, query.shape[1]
        keys = _gather(layer.key, group.blocks, num_rows, group.num_positions)
        values = _gather(layer.value, group.blocks, num_rows, group.num_positions)
        # [1, H, T, D] -> [N, num_kv_heads, H / num_kv_heads, D]
        queries = query[0, :, group.start : group.stop].transpose(0, 1)
        queries = queries.reshape(num_rows, keys.shape[1], -1, query.shape[-1])
        mask = group.mask(options.window)
        if options.softcap is None and options.sinks is None:
            output = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=options.scale)
        else:
            sinks = None if options.sinks is None else options.sinks.view(1, keys.shape[1], -1, 1)
            output = attend_explicitly(queries, keys, values, mask, options, sinks)
        return output.reshape(num_rows, num_heads, -1)

    def _prefill(
        self, query: Tensor, key: Tensor, value: Tensor, layer: LayerKV, chunk: PrefillChunk, options: AttentionOptions
    ) -> Tensor:
        """[num_tokens, num_heads, value_size]."""
        span = slice(chunk.start, chunk.stop)
        queries = query[:, :, span]
        if chunk.num_computed:
            keys = _gather(layer.key, chunk.blocks, 1, chunk.num_positions)
            values = _gather(layer.value, chunk.blocks, 1, chunk.num_positions)
        else:
            keys, values = key[:, :, span], value[:, :, span]
        if options.softcap is None and options.sinks is None:
            mask = chunk.mask(options.window)
            output = scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=options.scale, enable_gqa=True
            )
            return output[0].transpose(0, 1)
        num_kv_heads = keys.shape[1]
        queries = torch.unflatten(queries, 1, (num_kv_heads, -1))
        sinks = None if options.sinks is None else options.sinks.view(1, num_kv_heads, -1, 1, 1)
        mask = chunk.causal_mask(options.window)
        output = attend_explicitly(queries, keys.unsqueeze(2), values.unsqueeze(2), mask, options, sinks)
        return output.flatten(1, 2)[0].transpose(0, 1)


def attend_explicitly(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: AttentionOptions, sinks: Tensor | None
) -> Tensor:
    """Attention written out, softmax in fp32, for soft cap and sinks. `mask` and `sinks` broadcast to the scores."""
    scale = query.shape[-1] ** -0.5 if options.scale is None else options.scale
    scores = torch.matmul(query, key.transpose(-1, -2)) * scale
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    if mask is not None:
        scores = scores + mask
    if sinks is None:
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    else:
        with_sink = torch.cat((scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)), dim=-1)
        weights = torch.softmax(with_sink, dim=-1, dtype=torch.float32)[..., :-1]
    return torch.matmul(weights.to(value.dtype), value)


def _gather(cache: Tensor, blocks: Tensor, num_rows: int, num_positions: int) -> Tensor:
    """[num_rows, num_kv_heads, num_positions, size], a view of blocks copied side by side."""
    gathered = cache.index_select(0, blocks).view(num_rows, -1, cache.shape[2], cache.shape[3])
    return gathered[:, :num_positions].transpose(1, 2)


AttentionInterface.register(ATTENTION_NAME, paged_attention)
