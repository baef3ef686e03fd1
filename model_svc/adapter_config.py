"""What PEFT's adapter_config.json says of a LoRA adapter: ranks and scales. What is not served is refused by name.

Knows one file; does not know tensors, nor the model. Source: `peft.LoraConfig` (PEFT 0.21).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenwire.errors import FailedPrecondition, NotFound

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MAX_RANK = 512

READ = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights",
     "base_model_name_or_path"}
)  # fmt: skip
WITHOUT_EFFECT = frozenset(
    {"task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "target_modules", "exclude_modules",
     "lora_dropout", "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "loftq_config",
     "eva_config", "runtime_config"}
)  # fmt: skip
"""Settings of training, and names of layers: which layers are changed, the tensors say."""
NEUTRAL: tuple[Any, ...] = (None, False, "none", "", [], {})
"""Values of any other key with which it asks for nothing."""
PLAIN_INITS: tuple[Any, ...] = (None, True, False, "gaussian", "orthogonal", "eva")
"""Those that leave the base model's own weights alone."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Rank and scale of each layer that is changed."""

    rank: int
    alpha: float
    use_rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    """By the end of a layer's name, where they are others."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    base_model: str = ""
    """What the adapter was made for, as PEFT noted it."""

    def rank_of(self, layer: str) -> int:
        """The rank of the layer of this full name."""
        return next((rank for end, rank in self.ranks.items() if ends_with(layer, end)), self.rank)

    def scale_of(self, layer: str) -> float:
        """The factor of the layer of this full name."""
        alpha = next((alpha for end, alpha in self.alphas.items() if ends_with(layer, end)), self.alpha)
        rank = self.rank_of(layer)
        return alpha / rank**0.5 if self.use_rslora else alpha / rank


def ends_with(layer: str, end: str) -> bool:
    """Whether a layer's name is `end`, or ends with it after a dot."""
    return layer == end or layer.endswith(f".{end}")


def read_adapter_config(folder: Path) -> AdapterConfig:
    """What the file in `folder` says. Raises NotFound without the files, FailedPrecondition for what is not served."""
    path = folder / CONFIG_NAME
    try:
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            if not (folder / name).is_file():
                pickled = " (pickled weights are never loaded)" if (folder / "adapter_model.bin").exists() else ""
                raise NotFound(
                    f"adapter: {str(folder)!r:.300} holds no {name}{pickled}; PEFT's save_pretrained writes it",
                    reason="ADAPTER_FILES_NOT_FOUND",
                )
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise refused(f"is larger than {MAX_CONFIG_BYTES} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise refused("is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise refused(f"cannot be read ({error!s:.300})") from error
    if not isinstance(found, dict):
        raise refused("is not a JSON object")
    return adapter_config_of(found)


def adapter_config_of(found: dict[str, Any]) -> AdapterConfig:
    """The same from the file's content."""
    if found.get("peft_type") != "LORA":
        raise refused(f"peft_type {found.get('peft_type')!r} is not served: LORA alone")
    for key, value in found.items():
        if key not in READ | WITHOUT_EFFECT and value not in NEUTRAL:
            raise refused(f"{key} {shown(value)} is not served: plain LoRA of linear layers alone")
    if (init := found.get("init_lora_weights")) not in PLAIN_INITS:
        raise refused(
            f"init_lora_weights {shown(init)} changes the base model; save it with "
            "path_initial_model_for_weight_conversion, which makes it a plain adapter"
        )
    return AdapterConfig(
        rank=rank_in(found.get("r"), "r"),
        alpha=number_in(found.get("lora_alpha"), "lora_alpha"),
        use_rslora=flag_in(found.get("use_rslora"), "use_rslora"),
        ranks=pattern_in(found, "rank_pattern", rank_in),
        alphas=pattern_in(found, "alpha_pattern", number_in),
        base_model=str(found.get("base_model_name_or_path") or ""),
    )


def pattern_in(found: dict[str, Any], key: str, read: Any) -> dict[str, Any]:
    """Values by names of layers. PEFT takes regular expressions there; only names are served."""
    pattern = found.get(key) or {}
    if not isinstance(pattern, dict):
        raise refused(f"{key} {shown(pattern)} is not an object")
    for name in pattern:
        if not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", name):
            raise refused(f"{key} {name!r} is not served: names of layers alone, no regular expressions")
    return {name: read(value, f"{key}.{name}") for name, value in pattern.items()}


def rank_in(value: Any, key: str) -> int:
    """A rank. Raises FailedPrecondition."""
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise refused(f"{key} {shown(value)} is not served: an integer from 1 to {MAX_RANK}")
    return value


def flag_in(value: Any, key: str) -> bool:
    """True or False; absent is False. Raises FailedPrecondition."""
    if value is not None and type(value) is not bool:
        raise refused(f"{key} {shown(value)} is not served: true or false")
    return bool(value)


def number_in(value: Any, key: str) -> float:
    """A finite factor. Raises FailedPrecondition."""
    if type(value) not in (int, float) or not abs(value) <= 1e6:
        raise refused(f"{key} {shown(value)} is not served: a number of at most 1e6")
    return float(value)


def shown(value: Any) -> str:
    """A value for a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:79] + "…"


def refused(detail: str) -> FailedPrecondition:
    """The error for a file that is there and says what is not served."""
    return FailedPrecondition(f"adapter: {CONFIG_NAME}: {detail}", reason="ADAPTER_UNSUPPORTED")
