"""A tokenizer's files, for those who want to tokenize by themselves. Knows neither tokens nor the wire."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenwire.tokenizer_folder import TOKENIZER_FILES

PIECE_BYTES = 2**20
"""Under the 4 MiB that gRPC clients take in one message unless told otherwise."""


@dataclass(frozen=True, slots=True)
class TokenizerFile:
    """One file as it was when it was read."""

    name: str
    """Relative to the model's folder, with "/"."""
    content: bytes
    sha256: str

    def pieces(self) -> Iterator[bytes]:
        """The content, `PIECE_BYTES` at a time."""
        for start in range(0, len(self.content), PIECE_BYTES):
            yield self.content[start : start + PIECE_BYTES]


def read_tokenizer_files(folder: Path) -> list[TokenizerFile]:
    """Those that are there, the tokenizer itself first."""
    found = []
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            content = path.read_bytes()
            found.append(TokenizerFile(name, content, hashlib.sha256(content).hexdigest()))
    return found
