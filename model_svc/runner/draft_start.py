"""Loads a draft model beside the one that is served, and refuses one that does not go with it.

Knows files and settings; what the draft model is used for is `draft_model`'s business.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from model_svc.model.attention import AttentionBackend
from model_svc.model.loader import LoadedModel
from model_svc.model.ranks import Ranks
from model_svc.runner.fast_layers import with_fast_layers
from model_svc.settings import EngineSettings
from tokenwire.errors import FailedPrecondition
from tokenwire.fingerprint import vocabulary_fingerprint

Loader = Callable[[Path, torch.device, str, Ranks | None], LoadedModel]


def check_draft_model(settings: EngineSettings) -> None:
    """Raise FailedPrecondition for a draft model that cannot go with the model, or for settings that want one."""
    if not settings.draft_model:
        if settings.speculation == "draft":
            raise FailedPrecondition("speculation: draft needs --draft-model", reason="DRAFT_MODEL_MISSING")
        if settings.draft_quantization != "none":
            raise FailedPrecondition(
                f"draft_quantization: {settings.draft_quantization} is of no use without --draft-model",
                reason="DRAFT_MODEL_MISSING",
            )
        return
    if settings.speculation == "ngram":
        raise FailedPrecondition(
            "speculation: with ngram the draft model is never asked; leave --draft-model out, or use both or draft",
            reason="DRAFT_MODEL_UNUSED",
        )
    if settings.tensor_parallel > 1:
        raise FailedPrecondition(
            "draft_model: there is none for several ranks (tensor_parallel); use --speculation ngram",
            reason="DRAFT_MODEL_OF_RANKS",
        )
    target, draft = (Path(folder) / "tokenizer.json" for folder in (settings.model, settings.draft_model))
    if target.is_file() and draft.is_file() and vocabulary_fingerprint(target) != vocabulary_fingerprint(draft):
        raise FailedPrecondition(
            f"draft_model: {draft.parent} has another vocabulary than {target.parent} (tokenizer.json), so its "
            "token ids mean something else; choose a model of the same family",
            reason="DRAFT_MODEL_VOCABULARY",
        )


def load_draft_model(
    settings: EngineSettings, target: LoadedModel, backend: AttentionBackend, load: Loader, *, natively: bool
) -> LoadedModel | None:
    """The draft model on the target's device and in its dtype, its layers as its own quantization has them.

    None where there is none. Where there is no tokenizer to compare, at least as many token ids are asked for. Raises
    NotFound and FailedPrecondition.
    """
    if not settings.draft_model:
        return None
    dtype = str(target.dtype).removeprefix("torch.")
    draft = load(Path(settings.draft_model), target.device, dtype, None)
    tokenizers = [(Path(folder) / "tokenizer.json").is_file() for folder in (settings.model, settings.draft_model)]
    if not all(tokenizers) and draft.vocab_size != target.vocab_size:
        raise FailedPrecondition(
            f"draft_model: it has {draft.vocab_size} token ids and the model has {target.vocab_size}, and without a "
            "tokenizer.json of both it cannot be told whether they mean the same",
            reason="DRAFT_MODEL_VOCABULARY",
        )
    return with_fast_layers(draft_settings(settings), draft, backend, natively=natively)


def draft_settings(settings: EngineSettings) -> EngineSettings:
    """The settings as the draft model takes them."""
    return replace(
        settings, model=settings.draft_model, quantization=settings.draft_quantization, draft_model="",
        served_name="draft",
    )  # fmt: skip
