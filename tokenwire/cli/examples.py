"""The three examples that `tokenwire up` prints: they work as printed, in the shell it was started from."""

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
    ca = shown_path(Path(tls_folder).resolve() / "ca.pem") if tls_folder else ""
    url = f"--cacert {ca} https://{http_target}" if ca else f"http://{http_target}"
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "{QUESTION}"}}], "temperature": 0}}'
    python = shown_path(Path(sys.executable))
    tls = f', tls=ClientTls("{ca}")' if ca else ""
    key = ', api_key=os.environ["TOKENWIRE_API_KEY"]' if asks_who else ""
    authorization = ' -H "Authorization: Bearer $TOKENWIRE_API_KEY"' if asks_who else ""
    program = (
        f"{'import os; ' if asks_who else ''}from tokenwire.client import Client{', ClientTls' if ca else ''}; "
        f'print(Client("{grpc_target}"{key}{tls}).chat("{QUESTION}", temperature=0).text())'
    )
    call = f"{command_name()} chat --target {grpc_target}{f' --tls-ca {ca}' if ca else ''}"
    return [
        (
            "curl",
            f"curl -s {url}/v1/chat/completions{authorization} -H 'Content-Type: application/json' -d '{body}'",
        ),
        ("Python", f"{python} -c '{program}'"),
        ("CLI", f'{call} --temperature 0 "{QUESTION}"'),
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
