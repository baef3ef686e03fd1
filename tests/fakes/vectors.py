"""What a client's program must print when it is given the test vectors."""

import base64
import json
import subprocess
from collections.abc import Sequence

from scripts.vectors import FOLDER, vectors


def check_vectors(command: Sequence[object], *, has_json: bool = True, timeout_s: float = 60) -> None:
    """Run a client's program with `--vectors` and hold what it prints against the messages."""
    run = subprocess.run(
        [*map(str, command), "--vectors", str(FOLDER)], capture_output=True, text=True, timeout=timeout_s
    )
    assert run.returncode == 0, run.stderr
    told = {line["vector"]: line for line in map(json.loads, filter(None, run.stdout.splitlines()))}
    assert list(told) == [name for name, _, _ in vectors()]
    for name, _, message in vectors():
        written = type(message).FromString(base64.b64decode(told[name]["encoded"]))
        assert written == message, name
        assert told[name].get("json_equal") is (True if has_json else None), name
