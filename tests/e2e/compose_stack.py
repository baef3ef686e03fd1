"""The Compose file on a real Docker engine, under a project name, ports and a folder of models of its own."""

import json
import os
import re
import secrets
import shutil
import ssl
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenwire.addresses import free_ports
from tokenwire.client import Client

ROOT = Path(__file__).parent.parent.parent
QUESTION = "What is the capital of France?"
MODEL = "smollm2-135m-instruct"


def docker(*words: str, timeout_s: float = 120, environ: dict[str, str] | None = None) -> str:
    """What the command prints; fails the test with all it said."""
    result = subprocess.run(
        ["docker", *words], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, env=environ
    )
    assert result.returncode == 0, f"docker {' '.join(words)}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}"
    return result.stdout


def why_no_engine() -> str:
    """Why nothing can be started here; empty where an engine answers."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    for command in (["docker", "version"], ["docker", "compose", "version"], ["docker", "buildx", "version"]):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            return f"`{' '.join(command)}` says: {(result.stderr.strip().splitlines() or ['nothing'])[-1]}"
    return ""


@dataclass
class ComposeStack:
    """One run of the Compose file."""

    models: Path
    """Mounted at /models."""
    files: tuple[str, ...] = ("docker-compose.yml",)
    profiles: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("GRPC_PORT", "HTTP_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT", "JUPYTER_PORT")
        ports = dict(zip(names, map(str, free_ports(len(names))), strict=True))
        self.project = f"tokenwire-test-{secrets.token_hex(4)}"
        self.environ = {**os.environ, **ports, "TAG": "test", "MODELS": str(self.models), **self.environ}
        self.grpc_target = f"127.0.0.1:{ports['GRPC_PORT']}"
        self.http_url = f"http://127.0.0.1:{ports['HTTP_PORT']}"

    def compose(self, *words: str, timeout_s: float = 120) -> str:
        """What `docker compose` with these words prints."""
        return docker("compose", *self.flags, *words, timeout_s=timeout_s, environ=self.environ)

    @property
    def flags(self) -> list[str]:
        """What goes between `docker compose` and its command."""
        files = [word for file in self.files for word in ("-f", file)]
        return ["-p", self.project, *files, *(word for profile in self.profiles for word in ("--profile", profile))]

    def up(self, *words: str, timeout_s: float = 900) -> float:
        """Bring it up and wait until all is healthy; seconds that took."""
        began_s = time.monotonic()
        try:
            self.compose("up", "--detach", "--wait", *words, timeout_s=timeout_s)
        except AssertionError as error:
            logs = self.compose("logs", "--no-color", "--tail", "30")
            raise AssertionError(f"{error}\n{logs}") from None
        return time.monotonic() - began_s

    def container(self, service: str) -> dict[str, Any]:
        """What `docker inspect` says of a service's only container."""
        (container_id,) = self.compose("ps", "--all", "--quiet", service).split()
        return inspected(container_id)

    def run_in(self, service: str, *words: str) -> str:
        """What a command inside a service's container prints."""
        return self.compose("exec", "--no-TTY", service, *words)

    def metric(self, service: str, port: int, name: str) -> float:
        """A metric of a tier, summed over its labels, asked from inside: its port is not published."""
        script = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
        lines = self.run_in(service, "python", "-c", script).splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[{{ ]", line))


def inspected(container_id: str) -> dict[str, Any]:
    """What `docker inspect` says."""
    (found,) = json.loads(docker("inspect", container_id))
    assert isinstance(found, dict)
    return found


def ask_http(url: str, key: str = "", timeout_s: float = 60, context: ssl.SSLContext | None = None) -> str:
    """The answer over OpenAI's API."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=timeout_s, context=context) as response:
        content = json.load(response)["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def ask_grpc(target: str, timeout_s: float = 60) -> str:
    """The answer over gRPC."""
    with Client(target) as client:
        return client.chat(QUESTION, temperature=0, timeout_s=timeout_s).text()
