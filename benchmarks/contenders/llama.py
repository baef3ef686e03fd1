"""llama.cpp through llama-cpp-python, in a process of its own with no server around it: a single stream."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.contenders.peer_homes import home, python_of, versions
from benchmarks.contenders.running import Running, until_answers
from benchmarks.contenders.spec import Absent, Spec
from benchmarks.loadgen.measure import Target

PEER = "llama-cpp"
PACKAGES = ("llama-cpp-python==0.3.36",)
BUILD = {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
"""Compiled for this very processor."""
PROGRAM = Path(__file__).with_name("llama_program.py")
FORMATS = ("Q4_1", "Q4_0", "F16")
"""Q4_1 is the file that the default model is converted from; the others are made from it."""


def gguf(name: str) -> Path:
    """The weights in a format."""
    return home() / PEER / "models" / f"{name}.gguf"


def start(spec: Spec, threads: int, say: Callable[[str], None] = lambda _: None) -> Running:
    """Try it with one question; each run starts the program anew, before its warm-up. Raises Absent, ValueError."""
    given = spec.taken(gguf="Q4_1", threads=str(threads))
    python = python_of(PEER)
    if not gguf(given["gguf"]).is_file():
        raise Absent(f"no weights {given['gguf']}; there are {', '.join(FORMATS)}")
    command = [str(python), str(PROGRAM), str(gguf(given["gguf"])), given["threads"]]
    target = Target("pipe", shlex.join(command), "")
    startup_s, answer = until_answers(spec.label, target, None, time.perf_counter(), say=say)
    return Running(spec.label, target, None, versions(PEER, ("llama-cpp-python",)), given, startup_s, answer)
