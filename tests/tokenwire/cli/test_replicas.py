"""Where several model tiers go: ports, GPUs, cores; and that requests reach them all."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tokenwire.cli.test_processes import alive, wait_until
from tests.tokenwire.cli.test_up import ENVIRON, FREE_PORTS, TOKENWIRE
from tokenwire.addresses import free_ports
from tokenwire.cli.replicas import Places, free_after, places_here, with_replicas
from tokenwire.cli.tiers import UpSettings, tiers_of
from tokenwire.client import Client
from tokenwire.errors import FailedPrecondition

SETTINGS = {"port": 1, "http_port": 2, "tokenizer_port": 3, "drain_timeout_s": 5.0}


def settings(number: int, **more: object) -> UpSettings:
    (port,) = free_ports(1)
    return UpSettings(model="m", model_replicas=number, **{**SETTINGS, "model_port": port, **more})  # type: ignore[arg-type]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Places]]:
    """What `places_here` says, for a test to fill in."""
    places: list[Places] = []
    monkeypatch.setattr("tokenwire.cli.replicas.places_here", lambda: places[0])
    yield places


def test_one_replica_is_left_to_the_tier() -> None:
    asked = settings(1)
    assert with_replicas(asked, {}) is asked
    assert list(asked.models) == ["model"]


def test_ports_are_the_first_given_and_the_next_free_ones() -> None:
    (first,) = free_ports(1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", first + 1))
        listener.listen()
        placed = with_replicas(
            settings(3, engine="mock", model_port=first, tokenizer_port=first + 2, model_metrics_port=first + 10), {}
        )
    ports = [replica.port for replica in placed.models.values()]
    assert ports[0] == first
    assert ports[1] > first + 2 and ports[2] > ports[1]
    metrics = [replica.metrics_port for replica in placed.models.values()]
    assert metrics[0] == first + 10
    assert len({*ports, *metrics}) == 6
    assert {replica.metrics_port for replica in with_replicas(settings(2, engine="mock"), {}).replicas} == {0}
    with pytest.raises(FailedPrecondition, match="no free port above 65535"):
        next(free_after(65535, ()))


def test_on_a_cpu_they_share_the_cores(machine: list[Places]) -> None:
    machine.append(Places(gpus=0, cores=8))
    assert [(r.device, r.threads) for r in with_replicas(settings(3), {}).replicas] == [("cpu", 2)] * 3
    machine[0] = Places(gpus=2, cores=2)
    placed = with_replicas(settings(4), {"TOKENWIRE_MODEL_DEVICE": "cpu"})
    assert [(r.device, r.threads) for r in placed.replicas] == [("cpu", 1)] * 4
    own = {"TOKENWIRE_MODEL_DEVICE": "cpu", "TOKENWIRE_MODEL_THREADS": "5"}
    assert {r.threads for r in with_replicas(settings(4), own).replicas} == {0}


def test_each_gets_a_gpu_and_too_few_are_refused(machine: list[Places]) -> None:
    machine.append(Places(gpus=2, cores=8))
    assert [(r.device, r.threads) for r in with_replicas(settings(2), {}).replicas] == [("cuda:0", 0), ("cuda:1", 0)]
    with pytest.raises(FailedPrecondition, match="--model-replicas 3: each takes a GPU of its own, .* has 2"):
        with_replicas(settings(3), {})
    with pytest.raises(FailedPrecondition, match="TOKENWIRE_MODEL_DEVICE='cuda:1' with --model-replicas 2"):
        with_replicas(settings(2), {"TOKENWIRE_MODEL_DEVICE": "cuda:1"})
    machine[0] = Places(gpus=0, cores=8)
    with pytest.raises(FailedPrecondition, match="has 0"):
        with_replicas(settings(2), {"TOKENWIRE_MODEL_DEVICE": "cuda"})


def test_the_flags_name_each_place_and_the_tokenizer_tier_knows_all(machine: list[Places]) -> None:
    machine.append(Places(gpus=2, cores=8))
    gateway, tokenizer, *models = tiers_of(with_replicas(settings(2), {}))
    assert [tier.name for tier in models] == ["model-0", "model-1"]
    targets = tokenizer.arguments[tokenizer.arguments.index("--model-targets") + 1]
    assert targets == ",".join(tier.target for tier in models)
    assert [tier.arguments[tier.arguments.index("--device") + 1] for tier in models] == ["cuda:0", "cuda:1"]


def test_the_model_tiers_process_counts_gpus_and_cores() -> None:
    found = places_here()
    assert found.cores >= 1 and found.gpus >= 0
    with pytest.raises(FailedPrecondition, match="does not say what this machine has"):
        places_here((sys.executable, "-c", "raise SystemExit('no torch')"))


def counted(port: int, metric: str = "tokenwire_model_output_tokens_total") -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        found = re.search(rf"^{metric} (\S+)$", reply.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


def replica_process(parent: int, port: int) -> int:
    """The child of `tokenwire up` that serves on this port."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        if "model_svc" in words and words[words.index("--port") + 1] == str(port):
            return int(child)
    raise AssertionError("no such replica")


def _share_then_kill_one(process: "subprocess.Popen[str]", first: int, metrics: int) -> str:
    """What `tokenwire up` said from its start to its end."""
    assert process.stdout is not None
    banner = ""
    for line in process.stdout:
        banner += line
        if "Ctrl-C drains" in line:
            break
    ports = dict(re.findall(r"(model-\d) +ready after .*:(\d+)$", banner, re.MULTILINE))
    assert ports["model-0"] == str(first) and len(ports) == 2, banner
    scraped = dict(re.findall(r"(model-\d) http://127.0.0.1:(\d+)/metrics", banner))
    assert scraped["model-0"] == str(metrics)
    target = re.search(r"gRPC (\S+)", banner)
    assert target is not None
    with Client(target[1]) as client:
        while min(counts := [counted(int(port)) for port in scraped.values()]) < 20:  # one may be connected later
            with client.generate(*["one", "two"] * 4, max_tokens=20, timeout_s=20) as stream:
                assert {output.terminal.usage.completion_tokens for output in stream.outputs()} == {20}
            assert sum(counts) < 2000, counts
    pids = [replica_process(process.pid, int(ports[name])) for name in ("model-0", "model-1")]
    os.kill(pids[1], signal.SIGKILL)
    said = process.stdout.read()
    assert process.wait(60) == 1
    wait_until(lambda: not any(map(alive, pids)))
    return banner + said


@pytest.mark.model
def test_two_replicas_share_the_work_and_one_that_dies_ends_the_run() -> None:
    first, metrics = free_ports(2)
    command = [*TOKENWIRE, "up", *FREE_PORTS, "--engine=mock", "--model-replicas=2", f"--model-port={first}"]
    command += [f"--model-metrics-port={metrics}"]
    environ = {**ENVIRON, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ) as process:
        try:
            said = _share_then_kill_one(process, first, metrics)
        finally:
            process.kill()  # its tiers follow
    assert "the model-1 tier was killed by SIGKILL" in said
    assert re.search(r"^model-0 +\d\d:\d\d", said, re.MULTILINE)
