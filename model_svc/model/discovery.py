"""Finds out what a model asks of attention, by one forward pass of two tokens with an attention that only takes notes.

Gives the shape of each layer's cache, and refuses a model whose attention means something that `attention` does not
compute. It reads no config field for that: the mask each layer was given is compared, at sampled positions up to the
model's longest context, with the causal (and windowed) mask that the paged path would apply for the same arguments.
Does not compare numbers; that is `probe`'s part.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from model_svc.model.attention import ATTENTION_NAME
from model_svc.model.handover import handed_to
from model_svc.model.loader import LoadedModel
from model_svc.model.paged import LayerKVSpec

DISCOVERY_NAME = "tokenwire_discovery"

TAKEN = frozenset({"scaling", "sliding_window", "softcap", "s_aux"})
"""What `paged_attention` computes with."""
WITHOUT_EFFECT = frozenset(
    {"position_ids", "position_embeddings", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
     "cache_position", "past_key_values", "logits_to_keep", "output_router_logits"}
)  # fmt: skip
"""What models hand down that changes nothing in attention."""
MOST_SAMPLED_POSITIONS = 2**17


class Unservable(Exception):
    """Why a model cannot be served; the message is one clause."""


@dataclass(slots=True)
class AttentionNotes:
    """What the note-taking attention saw. Handed to it by the model's `Handover`, as a step's plan is."""

    specs: dict[int, LayerKVSpec] = field(default_factory=dict)
    num_calls: dict[int, int] = field(default_factory=dict)
    softcapped: bool = False


def discover(model: LoadedModel) -> tuple[LayerKVSpec, ...]:
    """The cache each layer needs. Raises Unservable, or what the model raises. Leaves it as it was."""
    notes = AttentionNotes()
    token_ids = torch.tensor([[0, 1]], device=model.device) % model.vocab_size
    positions = torch.tensor([[0, 1]], device=model.device)
    model.module.set_attn_implementation(DISCOVERY_NAME)
    try:
        with model.handover.carrying(notes):
            model.module(input_ids=token_ids, position_ids=positions, use_cache=False, return_dict=True)
    finally:
        model.module.set_attn_implementation(ATTENTION_NAME)
    check_calls(notes, model.num_layers)
    text = model.module.config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None) and not notes.softcapped:
        raise Unservable("its config asks for a soft cap that its attention is not given")
    return tuple(notes.specs[layer] for layer in range(model.num_layers))


def check_calls(notes: AttentionNotes, num_layers: int) -> None:
    """Raise Unservable unless every layer called attention exactly once."""
    wrong = [layer for layer in range(num_layers) if notes.num_calls.get(layer, 0) != 1]
    extra = sorted(set(notes.num_calls) - set(range(num_layers)))
    if wrong or extra:
        calls = sum(notes.num_calls.values())
        raise Unservable(
            f"its {num_layers} layers made {calls} calls to the registered attention instead of one each "
            f"(layers that differ: {', '.join(str(layer) for layer in (wrong + extra)[:8])})"
        )


def note_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Stands in for attention in `discover`: records the call, gives zeros of the right shape."""
    notes: AttentionNotes = handed_to(module)
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise Unservable(f"its {type(module).__name__} has no layer_idx")
    given = {name for name, argument in arguments.items() if argument is not None and argument is not False}
    if unknown := sorted(given - TAKEN - WITHOUT_EFFECT):
        raise Unservable(f"its attention takes {', '.join(unknown)}, which paged attention does not compute")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if not causal or dropout:
        raise Unservable("its attention is not causal" if not causal else "its attention drops weights at inference")
    if query.shape[1] % key.shape[1] or query.shape[2] != key.shape[2] or key.shape[1] != value.shape[1]:
        raise Unservable(f"its attention shapes {tuple(query.shape)}, {tuple(key.shape)} are not grouped-query ones")
    check_mask(attention_mask, arguments.get("sliding_window"))
    notes.specs[layer] = LayerKVSpec(key.shape[1], key.shape[3], value.shape[3])
    notes.num_calls[layer] = notes.num_calls.get(layer, 0) + 1
    notes.softcapped |= arguments.get("softcap") is not None
    return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


def sampled_mask(*, mask_function: Callable[..., Any], config: Any, device: Any = "cpu", **_: Any) -> Tensor:
    """Stands in for mask building in `discover`: the model's mask at a few query positions, [1, 1, Q, num_positions].

    It goes down to each layer in place of a real mask, and `check_mask` reads it there.
    """
    num_positions = min(int(getattr(config, "max_position_embeddings", 0) or 4096), MOST_SAMPLED_POSITIONS)
    query, key = sampled_positions(num_positions, torch.device(device))
    index = torch.zeros((), dtype=torch.int64, device=device)
    allowed = mask_function(index, index, query, key)
    return torch.as_tensor(allowed, device=device).expand(query.shape[0], num_positions)[None, None]


def sampled_positions(num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Query positions [Q, 1] from both ends and between, and all key positions [1, num_positions]."""
    query = sorted({0, 1, num_positions // 3, num_positions // 2 + 1, num_positions - 2, num_positions - 1})
    return (
        torch.tensor([q for q in query if q >= 0], device=device)[:, None],
        torch.arange(num_positions, device=device)[None, :],
    )


def check_mask(mask: Tensor | None, window: int | None) -> None:
    """Raise Unservable unless `mask`, if the model made one, is what the paged path applies for this `window`."""
    if mask is None:
        return
    query, key = sampled_positions(mask.shape[-1], mask.device)
    if mask.dtype != torch.bool or mask.shape != (1, 1, query.shape[0], key.shape[1]):
        raise Unservable("it builds an attention mask of its own")
    allowed = key <= query
    if window is not None:
        allowed &= key > query - window
    if not torch.equal(mask[0, 0], allowed):
        described = "causal" if window is None else f"a causal window of {window}"
        raise Unservable(f"a layer's mask is not {described}, which is all that its attention is told")


AttentionInterface.register(DISCOVERY_NAME, note_attention)
AttentionMaskInterface.register(DISCOVERY_NAME, sampled_mask)
