"""Loads encoders, models that read a text in both directions and generate nothing: the BERT family.

Told from other models by config.json. Like the causal loader: safetensors only, never remote code, never the network.
Knows where positions begin and how many there are; whether a packed pass serves the model rightly is for
`encoder_probe` to find out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from model_svc.model.device import resolve_dtype
from model_svc.model.encoder_attention import ENCODER_ATTENTION, EncoderBackend, EncoderCall, Packed
from model_svc.model.handover import Handover
from model_svc.model.loader import check_files, corrupt, unsupported
from model_svc.model.upload import to_device

FROM_PRETRAINED: Any = AutoModel.from_pretrained
"""Untyped: its declared result leaves out the loading report."""

AT_ZERO = ("bert", "distilbert")
"""Model types whose positions begin at 0."""
BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert")
"""Those whose positions begin behind the padding token's id, as fairseq counted them."""
SERVED = (*AT_ZERO, *BEHIND_PADDING)
NOT_SERVED = frozenset(
    {
        "albert", "bart", "big_bird", "bros", "canine", "convbert", "data2vec-text", "deberta", "deberta-v2", "electra",
        "ernie", "esm", "eurobert", "flaubert", "funnel", "ibert", "layoutlm", "longformer", "luke", "megatron-bert",
        "mobilebert", "modernbert", "mpnet", "mra", "mt5", "nezha", "nomic_bert", "nystromformer", "rembert",
        "roberta-prelayernorm", "roformer", "squeezebert", "t5", "umt5", "xlm", "xlm-roberta-xl", "xlnet", "xmod",
        "yoso",
    }
)  # fmt: skip
"""Model types that are encoders, or have one, and are refused by name rather than for what the causal loader finds."""
WITHOUT_POOLER = ("distilbert",)
"""Model types that never have the layer behind the first token, which is of no use here."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """An encoder in evaluation mode on its device, and what its files say of it."""

    module: Any
    """The `transformers` PreTrainedModel without any head."""
    handover: Handover
    """Brings to its attention which tokens belong together."""
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    hidden_size: int
    num_layers: int
    max_tokens: int
    """Longest sequence that it has positions for."""
    first_position: int
    """What the model calls the first."""

    def hidden(self, token_ids: Tensor, positions: Tensor, packed: Packed, backend: EncoderBackend) -> Tensor:
        """[T, hidden_size]: the last hidden states of a row of packed sequences.

        `token_ids` [T] int64; `positions` [T] int64, the first of each sequence 0.
        """
        with self.handover.carrying(EncoderCall(packed, backend)):
            output = self.module(input_ids=token_ids[None], position_ids=(positions + self.first_position)[None])
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def is_encoder(folder: Path) -> bool:
    """Whether the folder's config.json names an encoder, one that is served or one that is not.

    False for a folder without a readable one, which the causal loader refuses.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        kind, decodes = config.get("model_type"), bool(config.get("is_decoder"))
    except (OSError, ValueError, AttributeError):
        return False
    return (kind in SERVED or kind in NOT_SERVED) and not decodes


def load_encoder(folder: Path, device: torch.device, dtype: str) -> Encoder:
    """Load the encoder in `folder`; `dtype` as in the settings. Raises NotFound and FailedPrecondition."""
    check_files(folder)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if config.model_type not in SERVED:
            served = ", ".join(SERVED)
            raise unsupported(folder, f"encoders of type {config.model_type!r} are not; those of {served} are")
        torch_dtype = resolve_dtype(dtype, device, config.dtype)
        options = {} if config.model_type in WITHOUT_POOLER else {"add_pooling_layer": False}
        module, report = FROM_PRETRAINED(
            folder, config=config, dtype=torch_dtype, attn_implementation=ENCODER_ATTENTION, use_safetensors=True,
            local_files_only=True, trust_remote_code=False, output_loading_info=True, **options,
        )  # fmt: skip
    except SafetensorError as error:
        raise corrupt(folder, f"a weights file cannot be read ({error})") from error
    except (OSError, json.JSONDecodeError) as error:
        raise corrupt(folder, str(error)) from error
    except (ValueError, AttributeError, ImportError, TypeError, RuntimeError, LookupError) as error:
        raise unsupported(folder, f"transformers gives {type(error).__name__}: {error}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if report[kind]:
            some = ", ".join(sorted(str(key) for key in report[kind])[:3])
            raise corrupt(folder, f"its weights do not match its config.json ({len(report[kind])} {kind}: {some})")
    return encoder_of(module, device, torch_dtype)


def encoder_of(module: Any, device: torch.device, dtype: torch.dtype) -> Encoder:
    """The encoder and what it says of itself. `module`: from `transformers`, made with attention ENCODER_ATTENTION."""
    config = module.config
    first_position = int(config.pad_token_id) + 1 if config.model_type in BEHIND_PADDING else 0
    return Encoder(
        module=module.eval().requires_grad_(False).to(device),
        handover=Handover(module),
        device=device,
        dtype=dtype,
        vocab_size=int(config.vocab_size),
        hidden_size=int(config.hidden_size),
        num_layers=int(config.num_hidden_layers),
        max_tokens=int(config.max_position_embeddings) - first_position,
        first_position=first_position,
    )


def packed_row(lengths: list[int], device: torch.device) -> tuple[Tensor, Packed]:
    """Positions [T] int64 of sequences of these lengths side by side, and which tokens belong together."""
    starts = np.concatenate(([0], np.cumsum(lengths)))
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return to_device(positions, device), Packed(tuple(lengths), to_device(starts.astype(np.int32), device))
