"""What makes a folder a complete model: the Hugging Face files, and the manifest that Tokenwire's own folders carry.

Reads headers and sizes, and hashes on request; loads no weights and imports neither torch nor safetensors.
"""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenwire.errors import FailedPrecondition
from tokenwire.tokenizer_folder import check_tokenizer, gguf_hint

MANIFEST = "tokenwire.json"
MANIFEST_FORMAT = 1
MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file; the library takes no larger one."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

Progress = Callable[[str, float], None]
"""Told what is going on and how far it is, from 0 to 1."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file of a complete folder looks like."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where a folder's content comes from, and its files; written last, so its presence means complete."""

    name: str
    source: str
    source_sha256: str
    converter_version: int
    dtype: str
    files: dict[str, FileRecord]
    format: int = MANIFEST_FORMAT


def write_manifest(
    folder: Path, *, name: str, source: str, source_sha256: str, converter_version: int, dtype: str
) -> Manifest:
    """Record every file of `folder` in its manifest, and return it."""
    files = {
        path.name: FileRecord(path.stat().st_size, sha256_of(path))
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    manifest = Manifest(name, source, source_sha256, converter_version, dtype, files)
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or None where it has none; raises FailedPrecondition when it cannot be read."""
    path = folder / MANIFEST
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        files = {name: FileRecord(**record) for name, record in values.pop("files").items()}
        if not all(map(is_file_name, files)):
            raise ValueError("it names files that are not in its folder")
        return Manifest(**values, files=files)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FailedPrecondition(f"{path}: not readable as a manifest ({error})", reason="MODEL_DAMAGED") from None


def check_folder(folder: Path) -> Manifest | None:
    """Whether `folder` is a complete model, by names, sizes and headers alone (milliseconds).

    Returns its manifest where it has one; raises FailedPrecondition naming the file that is wrong.
    """
    manifest = read_manifest(folder)
    for name, record in manifest.files.items() if manifest else ():
        path = folder / name
        if not path.is_file():
            raise FailedPrecondition(f"{path}: missing", reason="MODEL_DAMAGED")
        if path.stat().st_size != record.num_bytes:
            raise FailedPrecondition(
                f"{path}: {path.stat().st_size} bytes instead of {record.num_bytes}", reason="MODEL_DAMAGED"
            )
    check_config(folder)
    check_tokenizer(folder)
    for path in weight_files(folder):
        check_safetensors(path)
    return manifest


def verify_folder(folder: Path, progress: Progress) -> Manifest | None:
    """As `check_folder`, and every file's SHA-256 where there is a manifest (seconds per GB)."""
    manifest = check_folder(folder)
    if manifest is None:
        return None
    for index, (name, record) in enumerate(manifest.files.items()):
        progress("checking files", index / len(manifest.files))
        found = sha256_of(folder / name)
        if found != record.sha256:
            raise FailedPrecondition(
                f"{folder / name}: SHA-256 is {found}, the manifest says {record.sha256}", reason="MODEL_DAMAGED"
            )
    progress("checking files", 1.0)
    return manifest


def is_file_name(name: Any) -> bool:
    """Whether this names a file of a folder, and none elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\0"}.intersection(name)


def check_config(folder: Path) -> None:
    """Raise FailedPrecondition unless config.json is there and names a model type."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_bytes())
        values["model_type"]
    except FileNotFoundError:
        hint = gguf_hint(folder) or "it is not a Hugging Face model folder"
        raise FailedPrecondition(f"{folder}: no config.json; {hint}", reason="MODEL_INCOMPLETE") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FailedPrecondition(
            f"{path}: not a model's config ({type(error).__name__}: {error})", reason="MODEL_DAMAGED"
        ) from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of `folder`, as its index says where it has one; raises FailedPrecondition without any."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FailedPrecondition(
                f"{index}: not readable ({type(error).__name__}: {error})", reason="MODEL_DAMAGED"
            ) from None
        for name in names:
            if not is_file_name(name) or not name.endswith(".safetensors"):
                raise FailedPrecondition(
                    f"{index}: {name!r:.80} names no safetensors file of this folder, and nothing else is loaded",
                    reason="MODEL_DAMAGED",
                )
        return [folder / name for name in sorted(names)]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        pickles = any(path for pattern in PICKLES for path in folder.glob(pattern))
        hint = "; pickled weights are never loaded, save the model as safetensors" if pickles else ""
        raise FailedPrecondition(f"{folder}: no *.safetensors file{hint}", reason="MODEL_INCOMPLETE")
    return found


def check_safetensors(path: Path) -> None:
    """Raise FailedPrecondition unless the file is as long as its header says.

    The format: 8 bytes little-endian header length, a JSON header with each tensor's data_offsets, then the data.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError(f"its header would be {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
        if size != expected:
            raise ValueError(f"{size} bytes instead of {expected}, cut off while it was written or copied")
    except FileNotFoundError:
        raise FailedPrecondition(f"{path}: missing", reason="MODEL_INCOMPLETE") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise FailedPrecondition(f"{path}: not a whole safetensors file ({error})", reason="MODEL_DAMAGED") from None


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files under `folder`; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def require_disk(folder: Path, num_bytes: int) -> None:
    """Raise FailedPrecondition when the disk of `folder` has less than `num_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise FailedPrecondition(
            f"{folder}: {free / 1e9:.1f} GB free, {num_bytes / 1e9:.1f} GB needed; free some space or set "
            "TOKENWIRE_HOME to a folder on another disk",
            reason="DISK_FULL",
        )


def sync(folder: Path) -> None:
    """Push `folder`'s entries and its files to the disk, so that a rename after a power cut never shows holes."""
    for path in (*(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
