"""The real stack as processes: `tokenwire up` with the default model in fp32, on free loopback ports."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.reference import Reference
from tests.waiting import wait_until_serving
from tokenwire.addresses import free_ports
from tokenwire.models import home


@dataclass(frozen=True)
class Stack:
    grpc_target: str
    http_url: str
    model_target: str
    log: Path


@pytest.fixture(scope="session")
def model_folder() -> Path:
    folder = home() / "models" / "smollm2-135m-instruct"
    if not folder.is_dir():
        pytest.fail("the default model is not in the cache: run `make model`")
    return folder


@pytest.fixture(scope="session")
def reference(model_folder: Path) -> Reference:
    return Reference(model_folder)


@pytest.fixture(scope="session")
def stack(model_folder: Path) -> Iterator[Stack]:
    with running_stack("--dtype", "float32") as running:
        yield running


@contextmanager
def running_stack(*flags: str, **environment: str) -> Iterator[Stack]:
    """`tokenwire up` with these flags and variables; ends with the block."""
    gateway, http, tokenizer, model = free_ports(4)
    command = [
        sys.executable, "-m", "tokenwire.cli.main", "up", *flags, "--port", str(gateway),
        "--http-port", str(http), "--tokenizer-port", str(tokenizer), "--model-port", str(model),
        "--gateway-metrics-port", "0", "--tokenizer-metrics-port", "0", "--model-metrics-port", "0",
    ]  # fmt: skip
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        variables = {**os.environ, "NO_COLOR": "1", **environment}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables)
        running = Stack(f"127.0.0.1:{gateway}", f"http://127.0.0.1:{http}", f"127.0.0.1:{model}", Path(log.name))
        try:
            wait_until_serving(running.grpc_target, process, running.log.read_text)
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
        assert status == 0, running.log.read_text()
