"""The examples that `tokenwire up` prints: they work as printed, in the shell it was started from."""

import os
import shutil
import sys
from pathlib import Path

QUESTION = "What is the capital of France?"


def examples(
    model: str, grpc_target: str, http_target: str, tls_folder: str = "", *, asks_who: bool = False
) -> list[tuple[str, str]]:
    """Title and command of each. `tls_folder`: where the CA is that clients trust; empty: without TLS.

    `asks_who`: they send the key in TOKENWIRE_API_KEY, which the command line does by itself.
    """
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "{QUESTION}"}}], "temperature": 0}}'
    ca = _ca_of(tls_folder)
    call = f"{command_name()} chat --target {grpc_target}{f' --tls-ca {ca}' if ca else ''}"
    return [
        ("curl", _curl(http_target, "/v1/chat/completions", body, ca, asks_who)),
        ("Python", _python(grpc_target, f'chat("{QUESTION}", temperature=0).text()', ca, asks_who)),
        ("CLI", f'{call} --temperature 0 "{QUESTION}"'),
    ]


def embedding_examples(
    model: str, grpc_target: str, http_target: str, tls_folder: str = "", *, asks_who: bool = False
) -> list[tuple[str, str]]:
    """The same for a model that gives vectors and no text."""
    body = f'{{"model": "{model}", "input": ["The cat sat on the mat.", "A feline rested on a rug."]}}'
    ca = _ca_of(tls_folder)
    return [
        ("curl", _curl(http_target, "/v1/embeddings", body, ca, asks_who)),
        ("Python", _python(grpc_target, 'embed("The cat sat on the mat.", dimensions=4).vectors', ca, asks_who)),
    ]


def _ca_of(tls_folder: str) -> str:
    return shown_path(Path(tls_folder).resolve() / "ca.pem") if tls_folder else ""


def _curl(target: str, path: str, body: str, ca: str, asks_who: bool) -> str:
    url = f"--cacert {ca} https://{target}" if ca else f"http://{target}"
    authorization = ' -H "Authorization: Bearer $TOKENWIRE_API_KEY"' if asks_who else ""
    return f"curl -s {url}{path}{authorization} -H 'Content-Type: application/json' -d '{body}'"


def _python(target: str, call: str, ca: str, asks_who: bool) -> str:
    tls = f', tls=ClientTls("{ca}")' if ca else ""
    key = ', api_key=os.environ["TOKENWIRE_API_KEY"]' if asks_who else ""
    imported = f"{'import os; ' if asks_who else ''}from tokenwire.client import Client{', ClientTls' if ca else ''}"
    return f"{shown_path(Path(sys.executable))} -c '{imported}; print(Client(\"{target}\"{key}{tls}).{call})'"


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
