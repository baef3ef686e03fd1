"""What a model folder says of itself that the engine does not: its kind, its special ids, its tokenizer as one file.

Does not know the wire.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

BUNDLED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "chat_template.json", "config.json",
    "generation_config.json", "preprocessor_config.json",
)  # fmt: skip
"""What a peer that has no such folder needs to encode and decode."""

CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """From config.json; empty or 0 where it does not say."""

    model_type: str = ""
    architectures: tuple[str, ...] = ()
    bos_token_id: int = 0
    pad_token_id: int = 0


def facts_of(folder: Path | None) -> ModelFacts:
    """What the folder says. A file that is missing or odd says nothing: the engine judges the model."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder is not None else {}
    except (OSError, ValueError):
        config = {}
    if not isinstance(config, dict):
        config = {}
    architectures = config.get("architectures")
    return ModelFacts(
        model_type=str(config.get("model_type") or ""),
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        bos_token_id=_first_id(config.get("bos_token_id")),
        pad_token_id=_first_id(config.get("pad_token_id")),
    )


def _first_id(value: Any) -> int:
    first = value[0] if isinstance(value, list) and value else value
    return first if type(first) is int and 0 <= first < 2**31 else 0


def tokenizer_of(folder: Path | None) -> Tokenizer | None:
    """The tokenizer in which stop strings are looked for; None where the folder has no tokenizer.json."""
    path = folder / "tokenizer.json" if folder is not None else None
    return Tokenizer.from_file(str(path)) if path is not None and path.is_file() else None


def tokenizer_bundle(folder: Path) -> bytes:
    """A zip of the tokenizer's files, the same bytes for the same files."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in BUNDLED:
            if (folder / name).is_file():
                bundle.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return data.getvalue()


def chunks_of(data: bytes) -> Iterator[tuple[bytes, str]]:
    """The data in pieces, the last with the hash of the whole."""
    for begin in range(0, len(data), CHUNK_BYTES):
        last = begin + CHUNK_BYTES >= len(data)
        yield data[begin : begin + CHUNK_BYTES], hashlib.sha256(data).hexdigest() if last else ""
