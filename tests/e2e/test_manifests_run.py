"""What the manifests of deploy/kubernetes say, tried as far as it can be without a cluster.

Tiers are started with exactly the variables of a rendered overlay, asked by its probes, and ended as a pod is. Other
than in a pod, ports and folders are this test's, headless services are names of the loopback, the engine is the mock.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.manifests import containers
from tests.e2e.tier_processes import TierProcesses
from tests.waiting import wait_for
from tokenwire.addresses import free_ports
from tokenwire.client import Client, ClientTls
from tokenwire.development_ca import DevelopmentCa

pytestmark = [pytest.mark.model, pytest.mark.extended]

MODULES = {"model": "model_svc", "tokenizer": "tokenizer_svc", "gateway": "gateway"}
"""In the order in which they start."""
MODEL = "smollm2-135m-instruct"
OURS = {"model": {"ENGINE": "mock"}, "tokenizer": {}, "gateway": {}}
PORTS = {"grpc": "PORT", "http": "HTTP_PORT", "metrics": "METRICS_PORT"}


@dataclass
class Pod:
    """One tier, as its container would be."""

    container: dict[str, Any]
    environment: dict[str, str]
    ports: dict[str, int]
    numbers: dict[int, int]
    """From the manifest's ports to these."""
    process: subprocess.Popen[bytes] | None = None

    def passes(self, probe: dict[str, Any]) -> bool:
        """Whether a kubelet would be content."""
        timeout_s = probe.get("timeoutSeconds", 1) * 3  # this machine may be busy
        if "grpc" in probe:
            with grpc.insecure_channel(f"127.0.0.1:{self.numbers[probe['grpc']['port']]}") as channel:
                request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
                try:
                    return health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s).status == 1
                except grpc.RpcError:
                    return False
        if "httpGet" in probe:
            get = probe["httpGet"]
            url = f"{get['scheme'].lower()}://127.0.0.1:{self.ports[get['port']]}{get['path']}"
            with httpx.Client(verify=False, trust_env=False, timeout=timeout_s) as client:  # noqa: S501
                try:
                    return client.get(url).status_code < 400
                except httpx.TransportError:
                    return False
        if "exec" in probe:
            words = [re.sub(r"(?<=:)\d+$", lambda m: str(self.numbers[int(m[0])]), w) for w in probe["exec"]["command"]]
            assert words[0] == "tokenwire"
            command = [sys.executable, "-m", "tokenwire.cli.main", *words[1:]]
            return subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True).returncode == 0
        with httpx.Client(trust_env=False, timeout=timeout_s) as client:
            try:
                client.get(f"http://127.0.0.1:{self.ports[probe['tcpSocket']['port']]}")
            except httpx.ConnectError:
                return False
            except httpx.TransportError:
                pass
        return True


@dataclass
class Cluster:
    """The pods of one overlay, one of each tier."""

    folder: Path
    pods: dict[str, Pod] = field(default_factory=dict)
    key: str = ""
    tls: ClientTls | None = None

    def client(self) -> Client:
        return Client(f"127.0.0.1:{self.pods['gateway'].ports['grpc']}", api_key=self.key, tls=self.tls)


def environment_of(container: dict[str, Any], cluster: Cluster) -> dict[str, str]:
    """As the container has it, with folders and targets of this machine."""
    found: dict[str, str] = {}
    for variable in container["env"]:
        name, value = variable["name"], variable.get("value")
        if value is None:
            value = {"MODEL": MODEL, "TOKENWIRE_LOG": "info,json"}[variable["valueFrom"]["configMapKeyRef"]["key"]]
        if (target := re.fullmatch(r"dns:///(\w+)-sessions:\d+", value)) is not None:
            value = f"dns:///localhost:{cluster.pods[target[1]].ports['grpc']}"
        found[name] = value.replace("/etc/tokenwire", str(cluster.folder / container["name"]))
    return found


def secrets(cluster: Cluster, overlay: str) -> None:
    """What the pods would have mounted, made as docs/kubernetes.md says, with certificates for the names alone."""
    authority = DevelopmentCa.make(cluster.folder / "ca")
    for tier in MODULES:
        names = ("gateway", "127.0.0.1") if tier == "gateway" else (tier,)
        for mounted in ("tls", "clients-tls"):
            folder = cluster.folder / tier / mounted
            folder.mkdir(parents=True)
            certificate = authority.issue(tier, names=names)
            (folder / "tls.crt").write_bytes(certificate.read_bytes())
            (folder / "tls.key").write_bytes(certificate.with_name(f"{tier}-key.pem").read_bytes())
            (folder / "ca.crt").write_bytes((cluster.folder / "ca" / "ca.pem").read_bytes())
    identities = cluster.folder / "gateway" / "identities" / "identities.json"
    identities.parent.mkdir()
    identities.write_text(json.dumps({"keys": []}))
    command = [
        sys.executable,
        "-m",
        "tokenwire.cli.main",
        "keys",
        "new",
        str(identities),
        "laptop",
        "--tenant",
        "alice",
    ]
    cluster.key = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    if overlay == "public":
        cluster.tls = ClientTls(str(cluster.folder / "ca" / "ca.pem"))


@pytest.fixture(params=["cpu", "public", "production"])
def cluster(request: pytest.FixtureRequest, model_folder: Path, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    secrets(made, request.param)
    by_name = {container["name"]: container for _, _, container in containers(request.param)}
    with ExitStack() as stack:
        tiers = stack.enter_context(TierProcesses(tmp_path))
        for tier, module in MODULES.items():
            container = by_name[tier]
            ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
            numbers = {port["containerPort"]: ports[port["name"]] for port in container["ports"]}
            prefix = f"TOKENWIRE_{tier.upper()}_"
            environment = environment_of(container, made)
            environment |= {f"{prefix}{PORTS[port['name']]}": str(ports[port["name"]]) for port in container["ports"]}
            environment |= {f"{prefix}{name}": value for name, value in OURS[tier].items()}
            environment[f"{prefix}HOST"] = "127.0.0.1"
            pod = made.pods[tier] = Pod(container, environment, ports, numbers)
            pod.process = tiers.start(module, drain_timeout_s=None, **environment)
        for pod in made.pods.values():
            wait_for(lambda pod=pod: pod.passes(pod.container["readinessProbe"]))  # type: ignore[misc]
        yield made


def test_the_probes_pass_and_requests_are_answered(cluster: Cluster) -> None:
    for pod in cluster.pods.values():
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert pod.passes(pod.container[probe]), (pod.container["name"], probe)
    with cluster.client() as client:
        (output,) = client.generate("Once upon a time", max_tokens=5, ignore_eos=True).outputs()
        assert output.terminal.usage.completion_tokens == 5


def test_a_tier_that_waits_for_another_is_not_restarted(cluster: Cluster) -> None:
    """It is alive and not ready; one that ends takes its time to end well."""
    model, tokenizer = cluster.pods["model"], cluster.pods["tokenizer"]
    assert model.process is not None
    with cluster.client() as client, client.generate("Once", max_tokens=100, ignore_eos=True) as stream:
        next(iter(stream))
        model.process.send_signal(signal.SIGTERM)
        (output,) = stream.outputs()
    assert output.terminal.usage.completion_tokens >= 99, "what ran has ended by itself"
    assert model.process.wait(60) == 0
    wait_for(lambda: not tokenizer.passes(tokenizer.container["readinessProbe"]))
    assert tokenizer.passes(tokenizer.container["livenessProbe"])
