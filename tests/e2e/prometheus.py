"""A real Prometheus (Debian's), as a process of its own, and what it answers."""

import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e.tier_processes import end
from tests.interop.environments import not_to_be_had


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> Any:
        with httpx.Client(trust_env=False, timeout=10) as client:
            response = client.get(f"{self.url}/api/v1/{path}", params=query)
        if response.status_code == 503:  # it is starting
            response.raise_for_status()
        answer = response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str, label: str = "pod") -> dict[str, float]:
        """By the label; under the empty name where the answer has none."""
        found = self.get("query", query=query)["result"]
        return {sample["metric"].get(label, ""): float(sample["value"][1]) for sample in found}

    def scrapes_all(self, num_targets: int) -> bool:
        try:
            targets = self.get("targets")["activeTargets"]
        except (httpx.TransportError, httpx.HTTPStatusError):
            return False
        return len(targets) == num_targets and all(target["health"] == "up" for target in targets)


def start_prometheus(started: ExitStack, folder: Path, port: int, config: dict[str, Any]) -> Prometheus:
    """On this port of the loopback; it ends with `started`. Skips, or fails where it must be, without the program."""
    program = shutil.which("prometheus")
    if program is None:
        not_to_be_had("prometheus is not installed (Debian's package of that name)")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        str(program), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    log = started.enter_context((folder / "prometheus.log").open("wb"))
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    started.callback(end, process)
    return Prometheus(f"http://127.0.0.1:{port}")
