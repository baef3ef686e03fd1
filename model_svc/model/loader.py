"""Loads a causal language model from a folder: safetensors only, never remote code, never the network.

Knows files, dtypes and what generation_config says. Does not know whether paged attention serves the model rightly;
that is `probe`'s to find out.
"""

import inspect
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from model_svc.adapter_config import CONFIG_NAME
from model_svc.model.attention import ATTENTION_NAME, AttentionBackend, AttentionCall
from model_svc.model.device import resolve_dtype
from model_svc.model.handover import Handover
from model_svc.model.hidden_states import last_hidden_states
from model_svc.model.paged import PagedStep
from model_svc.model.ranks import Ranks
from model_svc.model.sharding import check_heads, shard
from model_svc.model.step_adapters import StepAdapters
from tokenwire.errors import FailedPrecondition, NotFound
from tokenwire.model_folder import weight_files
from tokenwire.sampling import SamplingParams

FROM_PRETRAINED: Any = AutoModelForCausalLM.from_pretrained
"""Untyped: its declared result leaves out the loading report."""


class Decoder(Protocol):
    """Computes a model's logits in place of its own forward pass."""

    def logits(self, token_ids: Tensor, positions: Tensor, keep: Tensor, step: PagedStep) -> Tensor:
        """See `LoadedModel.logits`."""

    def logits_and_hidden(
        self, token_ids: Tensor, positions: Tensor, keep: Tensor, step: PagedStep
    ) -> tuple[Tensor, Tensor]:
        """See `LoadedModel.logits_and_hidden`."""


class Adapters(Protocol):
    """What adds adapters' products to those of a model's layers."""

    def applied(self, step: StepAdapters | None) -> AbstractContextManager[None]:
        """Within, the layers add what the step's adapters do."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode on its device, and what its files say of it."""

    module: Any
    """The `transformers` PreTrainedModel."""
    handover: Handover
    """Brings to its attention what a forward pass computes with."""
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    num_layers: int
    max_context_tokens: int
    """Most positions the model was made for; 0 where its config does not say."""
    eos_token_ids: tuple[int, ...]
    sampling_defaults: SamplingParams
    """generation_config's; no field but `seed` is None."""
    takes_logits_to_keep: bool
    hidden_size: int = 0
    """Values of a hidden state; 0 where its config does not say."""
    decoder: Decoder | None = None
    """What computes in place of `module`, attention included, whatever the backend; None: the module."""
    adapters: Adapters | None = None
    """What adapts `module`; None: nothing does. A decoder sees to a step's adapters by itself."""

    def logits(
        self, token_ids: Tensor, positions: Tensor, keep: Tensor, step: PagedStep, backend: AttentionBackend
    ) -> Tensor:
        """Compute one flattened row and give the logits [S, vocab_size] of the tokens at the S indices in `keep`.

        `token_ids`, `positions`: [T] int64. Writes the tokens' keys and values into the step's cache.
        """
        if self.decoder is not None:
            return self.decoder.logits(token_ids, positions, keep, step)
        arguments = {"logits_to_keep": keep} if self.takes_logits_to_keep else {}
        adapted = nullcontext() if self.adapters is None else self.adapters.applied(step.adapters)
        with self.handover.carrying(AttentionCall(step, backend)), adapted:
            output = self.module(
                input_ids=token_ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False,
                return_dict=True, **arguments,
            )  # fmt: skip
        logits: Tensor = output.logits[0]
        return logits if self.takes_logits_to_keep else logits[keep]

    def logits_and_hidden(
        self, token_ids: Tensor, positions: Tensor, keep: Tensor, step: PagedStep, backend: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        """As `logits`, and the hidden states [T, hidden_size] behind the last norm of every token."""
        if self.decoder is not None:
            return self.decoder.logits_and_hidden(token_ids, positions, keep, step)
        with last_hidden_states(self.module) as caught:
            logits = self.logits(token_ids, positions, keep, step, backend)
        return logits, caught[0][0]


def load_model(folder: Path, device: torch.device, dtype: str, ranks: Ranks | None = None) -> LoadedModel:
    """Load the model in `folder`, with `ranks` this rank's part of it; `dtype` as in the settings.

    Raises NotFound and FailedPrecondition.
    """
    check_files(folder)
    # Nothing transformers prints at load is for an operator; what matters is raised below.
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        torch_dtype = resolve_dtype(dtype, device, config.get_text_config().dtype or config.dtype)
        module, report = FROM_PRETRAINED(
            folder, config=config, dtype=torch_dtype, attn_implementation=ATTENTION_NAME, use_safetensors=True,
            local_files_only=True, trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    except SafetensorError as error:
        raise corrupt(folder, f"a weights file cannot be read ({error})") from error
    except (OSError, json.JSONDecodeError) as error:
        raise corrupt(folder, str(error)) from error
    except KeyError as error:  # raised by models that look attention up in a table of their own
        if error.args == (ATTENTION_NAME,):
            raise unsupported(folder, "its attention is its own, and takes no other implementation") from error
        raise unsupported(folder, f"transformers gives KeyError: {error}") from error
    except (ValueError, AttributeError, ImportError, TypeError, RuntimeError, IndexError) as error:
        raise unsupported(folder, f"transformers gives {type(error).__name__}: {error}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if report[kind]:
            some = ", ".join(sorted(str(key) for key in report[kind])[:3])
            raise corrupt(folder, f"its weights do not match its config.json ({len(report[kind])} {kind}: {some})")
    module.eval()
    if ranks is not None:
        shard(module, ranks)
    return ready_to_run(module, device, torch_dtype)


def ready_to_run(module: Any, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """The model and what it says of itself. `module`: from `transformers`, made with attention ATTENTION_NAME."""
    text = module.config.get_text_config()
    return LoadedModel(
        module=module.eval().requires_grad_(False).to(device),
        handover=Handover(module),
        device=device,
        dtype=dtype,
        vocab_size=int(text.vocab_size),
        num_layers=int(text.num_hidden_layers),
        max_context_tokens=int(getattr(text, "max_position_embeddings", 0) or 0),
        eos_token_ids=eos_token_ids(module.generation_config, text),
        sampling_defaults=sampling_defaults(module.generation_config),
        takes_logits_to_keep="logits_to_keep" in inspect.signature(module.forward).parameters,
        hidden_size=int(getattr(text, "hidden_size", 0) or 0),
    )


def check_ranks(folder: Path, num_ranks: int) -> None:
    """Raise FailedPrecondition, without reading weights, when so many ranks cannot share the heads of this model."""
    check_files(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return  # `load_model` says what is wrong with it
    check_heads(config, num_ranks)


def check_files(folder: Path) -> None:
    """Raise NotFound or FailedPrecondition, saying what is wrong, unless `folder` looks like a model and no more."""
    if not folder.is_dir():
        raise NotFound(
            f"model: {str(folder)!r} is not a folder; fetch a model with `tokenwire models pull`, or pass --model a "
            "folder with config.json and *.safetensors",
            reason="MODEL_NOT_FOUND",
        )
    if not (folder / "config.json").is_file():
        raise corrupt(folder, "config.json is missing")
    if not any(folder.glob("*.safetensors")):
        raise corrupt(folder, "it holds no *.safetensors file (pickled weights are never loaded)")
    weight_files(folder)
    if (folder / CONFIG_NAME).exists():
        detail = f"{CONFIG_NAME} lies beside the model; give the adapter a folder of its own and load it as one"
        raise unsupported(folder, detail)


def corrupt(folder: Path, detail: str) -> FailedPrecondition:
    """The error for a folder whose files are incomplete or damaged."""
    return FailedPrecondition(
        f"model: {str(folder)!r} cannot be loaded: {detail}; delete the folder and fetch the model again",
        reason="MODEL_CORRUPT",
    )


def unsupported(folder: Path, detail: str) -> FailedPrecondition:
    """The error for a model that is intact and that Tokenwire cannot serve."""
    return FailedPrecondition(f"model: {str(folder)!r} cannot be served: {detail}", reason="MODEL_UNSUPPORTED")


def eos_token_ids(generation_config: Any, config: Any) -> tuple[int, ...]:
    """End-of-sequence ids: generation_config's, else the config's; empty where neither names one."""
    found = generation_config.eos_token_id if generation_config is not None else None
    if found is None:
        found = getattr(config, "eos_token_id", None)
    if found is None:
        return ()
    return (int(found),) if isinstance(found, int) else tuple(int(token_id) for token_id in found)


def sampling_defaults(generation_config: Any) -> SamplingParams:
    """What absent sampling fields mean: greedy unless do_sample is true; values that are not set are neutral.

    The repetition penalty holds for greedy decoding too, as in transformers' `generate`.
    """
    sampled = generation_config is not None and generation_config.do_sample is True

    def value(name: str, neutral: float) -> float:
        found = getattr(generation_config, name, None)
        return neutral if found is None else float(found)

    return SamplingParams(
        temperature=value("temperature", 1.0) if sampled else 0.0,
        top_k=int(value("top_k", 0)) if sampled else 0,
        top_p=value("top_p", 1.0) if sampled else 1.0,
        min_p=value("min_p", 0.0) if sampled else 0.0,
        repetition_penalty=value("repetition_penalty", 1.0),
        presence_penalty=0.0,
        frequency_penalty=0.0,
    )
