"""The examples that `tokenwire up` prints: they work as printed, in the shell it was started from."""

import os
import shutil
import sys
from pathlib import Path

QUESTION = "What is the capital of France?"


def examples(model: str, grpc_target: str, http_target: str) -> list[tuple[str, str]]:
    """Title and command of each."""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "{QUESTION}"}}], "temperature": 0}}'
    python = shown_path(Path(sys.executable))
    program = (
        f'from tokenwire.client import Client; print(Client("{grpc_target}").chat("{QUESTION}", temperature=0).text())'
    )
    return [
        (
            "curl",
            f"curl -s http://{http_target}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        ),
        ("Python", f"{python} -c '{program}'"),
        ("CLI", f'{command_name()} chat --target {grpc_target} --temperature 0 "{QUESTION}"'),
    ]


def embedding_examples(model: str, grpc_target: str, http_target: str) -> list[tuple[str, str]]:
    """The same for a model that gives vectors and no text."""
    body = f'{{"model": "{model}", "input": ["The cat sat on the mat.", "A feline rested on a rug."]}}'
    python = shown_path(Path(sys.executable))
    program = (
        f'from tokenwire.client import Client; print(Client("{grpc_target}").embed("A cat.", dimensions=4).vectors)'
    )
    return [
        ("curl", f"curl -s http://{http_target}/v1/embeddings -H 'Content-Type: application/json' -d '{body}'"),
        ("Python", f"{python} -c '{program}'"),
    ]


def command_name() -> str:
    """How this shell can call `tokenwire`: by name where that finds this one, else by path."""
    own = Path(sys.executable).with_name("tokenwire")
    found = shutil.which("tokenwire")
    if found is not None and Path(found).resolve() == own.resolve():
        return "tokenwire"
    return shown_path(own) if own.exists() else f"{shown_path(Path(sys.executable))} -m tokenwire.cli.main"


def shown_path(path: Path) -> str:
    """The path from here where that is shorter to read, else the whole."""
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
