"""What a model folder says of its embeddings, in the files of sentence-transformers.

`modules.json` lists what follows the model: a pooling, whose folder's config.json says which positions count, perhaps
a scaling to unit length, perhaps more layers, which are not computed here. `sentence_bert_config.json` may name the
longest input. Knows files; not what is computed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenwire.embeddings import Pooling
from tokenwire.errors import FailedPrecondition

MODES = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_lasttoken": Pooling.LAST,
}
"""Of a pooling's config.json; what else is true there is not computed."""
BY_NAME = {"cls": Pooling.CLS, "mean": Pooling.MEAN, "lasttoken": Pooling.LAST}
"""The same in files that name one mode, `pooling_mode`."""
COMPUTED = ("Transformer", "Pooling", "Normalize")
"""Modules, by the last part of their type."""


@dataclass(frozen=True, slots=True)
class EmbeddingDefaults:
    """What the folder says."""

    pooling: Pooling | None = None
    """None: it does not say, or `obstacle` does."""
    max_tokens: int = 0
    """Longest input it was trained for; 0: not said."""
    obstacle: str = ""
    """Why the vectors it was trained for are not computed here; empty: they are."""

    def pooling_of(self, *, generates: bool) -> Pooling | None:
        """What a request that names no pooling gets; None: it must name one.

        Where the folder says nothing: all positions of an encoder, the last one of a model that generates, which alone
        has read every other.
        """
        if self.obstacle:
            return None
        return self.pooling or (Pooling.LAST if generates else Pooling.MEAN)


def embedding_defaults(folder: Path) -> EmbeddingDefaults:
    """Read the files, where there are any. Raises FailedPrecondition for one that is damaged."""
    max_tokens = 0
    settings = _read(folder / "sentence_bert_config.json")
    if isinstance(settings, dict) and isinstance(settings.get("max_seq_length"), int):
        max_tokens = int(settings["max_seq_length"])
    modules = _read(folder / "modules.json")
    if not isinstance(modules, list):
        return EmbeddingDefaults(max_tokens=max_tokens)
    pooling: Pooling | None = None
    if isinstance(settings, dict) and settings.get("do_lower_case"):
        return EmbeddingDefaults(None, max_tokens, "sentence_bert_config.json: do_lower_case is not done here")
    for module in modules:
        if not isinstance(module, dict):
            return EmbeddingDefaults(None, max_tokens, f"modules.json holds {module!r:.40}, which is no module")
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in COMPUTED:
            return EmbeddingDefaults(None, max_tokens, f"modules.json names {kind!r}, which is not computed here")
        if kind == "Pooling":
            found = _pooling(_read(folder / str(module.get("path", "")) / "config.json"))
            if isinstance(found, str):
                return EmbeddingDefaults(None, max_tokens, found)
            pooling = found
    return EmbeddingDefaults(pooling, max_tokens)


def _pooling(config: Any) -> Pooling | str:
    """The pooling, or why it is not computed here."""
    if not isinstance(config, dict):
        return "modules.json names a pooling without a config.json"
    if isinstance(config.get("pooling_mode"), str):
        name = config["pooling_mode"]
        return BY_NAME.get(name) or f"its pooling is {name!r}, and only {', '.join(BY_NAME)} are computed here"
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) == 1 and modes[0] in MODES:
        return MODES[modes[0]]
    names = ", ".join(modes) or "none"
    return f"its pooling is {names}, and only one of {', '.join(MODES)} is computed here"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise FailedPrecondition(f"{path}: not readable as JSON ({error})", reason="MODEL_DAMAGED") from None
