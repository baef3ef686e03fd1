"""`python -m tokenizer_svc` as a process."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from tests.fakes import model_folder
from tests.fakes.model_tier import fake_model_tier
from tests.fakes.tokenizers_trained import write_folder
from tokenwire.health import wait_serving
from tokenwire.tokenizer_folder import TOKENIZER_FILES
from tokenwire.v1 import tokenizer_pb2, tokenizer_pb2_grpc

SERVICE_LINKS = {
    "TOKENWIRE_TOKENIZER_SERVICE_HOST": "10.0.0.1",
    "TOKENWIRE_TOKENIZER_PORT": "tcp://10.0.0.1:50052",
}
"""What Kubernetes puts into every container of the namespace."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tokenizer_svc", "--metrics-port", "0", *arguments]
    environment = {**os.environ, **environ}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def folder_at(path: Path) -> Path:
    model_folder.write_folder(path)
    return write_folder(path)


@contextlib.asynccontextmanager
async def process(folder: Path, target: str, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tokenizer_svc", "--model", str(folder), "--model-targets", target),
        *("--port", str(port), "--metrics-port", "0"),
        env={**os.environ, **SERVICE_LINKS, "TOKENWIRE_LOG": "json"},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


def test_serves_until_sigterm(tmp_path: Path) -> None:
    async def main() -> None:
        folder = folder_at(tmp_path / "tiny")
        async with fake_model_tier() as fake, process(folder, fake.target, port := free_port()) as started:
            async with asyncio.timeout(30):
                await wait_serving(f"127.0.0.1:{port}")
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
                    models = await stub.ListModels(tokenizer_pb2.ListModelsRequest())
                    assert [card.name for card in models.models] == ["tiny"]
                started.send_signal(signal.SIGTERM)
                _, logs = await started.communicate()
            assert started.returncode == 0, logs.decode()
            assert b'"stopped"' in logs

    asyncio.run(main())


def test_serves_from_the_tokenizers_files_alone(tmp_path: Path) -> None:
    async def main() -> None:
        folder = write_folder(tmp_path / "tiny")
        assert {path.name for path in folder.iterdir()} <= set(TOKENIZER_FILES)
        async with fake_model_tier() as fake, process(folder, fake.target, port := free_port()):
            async with asyncio.timeout(30):
                await wait_serving(f"127.0.0.1:{port}")

    asyncio.run(main())


def test_what_prevents_a_start_is_one_clear_line(tmp_path: Path) -> None:
    folder = folder_at(tmp_path / "tiny")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = run("--model", str(folder), "--port", port)
    assert found.returncode == 1 and f"127.0.0.1:{port}" in found.stderr and "--port" in found.stderr
    found = run("--model", str(folder), "--port", "0", "--host", "0.0.0.0")
    assert found.returncode == 1 and "--insecure" in found.stderr
    (folder / "tokenizer.json").write_text("{")
    found = run("--model", str(folder), "--port", "0")
    assert found.returncode == 1 and "tokenizer.json" in found.stderr
    found = run("--model", str(tmp_path / "absent"), "--port", "0")
    assert found.returncode == 1 and "absent" in found.stderr
    assert "Traceback" not in found.stderr
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").touch()
    found = run("--model", str(folder), "--port", "0")
    assert found.returncode == 1 and "save_pretrained" in found.stderr


def test_unknown_settings_are_refused() -> None:
    found = run("--model-targets", "nowhere")
    assert found.returncode == 2 and "host:port" in found.stderr
    found = run(TOKENWIRE_TOKENIZER_ENCODE_WINDOW="3")
    assert found.returncode == 2 and "TOKENWIRE_TOKENIZER_ENCODE_WINDOW" in found.stderr
    assert "TOKENWIRE_TOKENIZER_ENCODE_WINDOW_MS" in found.stderr
