"""The containers on a real Docker engine: built, brought up from nothing, asked, killed, scaled, watched, taken down.

Slow where nothing is built yet (minutes). `pytest -s tests/e2e/test_compose.py` prints what was measured.
"""

import json
import os
import re
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.compose_stack import ComposeStack, ask_grpc, ask_http, docker, inspected, why_no_engine
from tokenwire.addresses import free_ports
from tokenwire.client import Client, ClientTls
from tokenwire.development_ca import make_all
from tokenwire.identity_file import add_key, hash_of

pytestmark = pytest.mark.extended

TIERS = ("model", "tokenizer", "gateway")
BASE_IMAGE = "python:3.11-slim-bookworm"
MAX_SMALL_IMAGE_BYTES = 250e6
PROMETHEUS = "tokenwire-test-prometheus"
ENVOY = "tokenwire-test-envoy"
KEY = "a-key-that-nobody-would-guess"
NOTEBOOK = """
import nbclient, nbformat
code = '''
import os
from tokenwire.client import Client
with Client(os.environ["TOKENWIRE_TARGET"]) as client:
    print(client.chat("What is the capital of France?", temperature=0).text())
'''
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
nbclient.NotebookClient(notebook).execute()
print(notebook.cells[0].outputs[0].text)
"""
READY_TOKENIZERS = (9464, 'tokenwire_gateway_tokenizer_sessions{state="ready"}')
READY_MODELS = (9465, 'tokenwire_tokenizer_model_replicas{state="ready"}')
NUM_REQUESTS = 64
NUM_AT_ONCE = 16


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    if why := why_no_engine():
        pytest.skip(f"no Docker engine: {why}")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models go, made by the engine as it makes `./models`."""
    return tmp_path_factory.mktemp("box") / "models"


@pytest.fixture(scope="module")
def stack(models: Path) -> Iterator[ComposeStack]:
    """All of it from nothing but the base image, or from what the engine has built before."""
    running = ComposeStack(models)
    try:
        seconds = running.up("--build")
        began_s = time.monotonic()
        assert "Paris" in ask_http(running.http_url)
        print(f"\nup --build --wait: {seconds:.1f} s; the first answer {time.monotonic() - began_s:.2f} s later")
        yield running
    finally:
        running.profiles = ("*",)
        running.compose("down", "--volumes", "--remove-orphans")


def test_it_answers_over_http_and_grpc(stack: ComposeStack) -> None:
    assert "Paris" in ask_http(stack.http_url)
    assert "Paris" in ask_grpc(stack.grpc_target)


def test_each_tier_was_started_once_the_one_before_was_healthy(stack: ComposeStack) -> None:
    init = stack.container("init")["State"]
    assert (init["Status"], init["ExitCode"]) == ("exited", 0)
    states = [stack.container(tier)["State"] for tier in TIERS]
    assert [state["Health"]["Status"] for state in states] == ["healthy"] * 3
    moments = [init["FinishedAt"], *(state["StartedAt"] for state in states)]
    assert moments == sorted(moments)


@pytest.mark.parametrize("tier", TIERS)
def test_nobody_is_root_and_nothing_can_be_written_but_tmp(stack: ComposeStack, tier: str) -> None:
    found = stack.container(tier)
    assert found["HostConfig"]["ReadonlyRootfs"] and found["HostConfig"]["CapDrop"] == ["ALL"]
    status = dict(line.split(":\t", 1) for line in stack.run_in(tier, "cat", "/proc/1/status").splitlines())
    assert status["Name"] == "tini" and status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == ["10001"] * 4 and int(status["CapEff"], 16) == 0
    attempt = (
        "touch /tmp/there && for each in / /models /home/tokenwire; do ! touch $each/x 2>/dev/null || exit 1; done"
    )
    stack.run_in(tier, "sh", "-c", attempt)


def test_only_the_gateway_is_published_and_on_the_loopback_alone(stack: ComposeStack) -> None:
    published = {tier: stack.container(tier)["NetworkSettings"]["Ports"] for tier in TIERS}
    bindings = {tier: [b["HostIp"] for each in ports.values() for b in each or ()] for tier, ports in published.items()}
    assert bindings == {"model": [], "tokenizer": [], "gateway": ["127.0.0.1", "127.0.0.1"]}


def test_images_of_the_upper_tiers_are_small_and_without_torch(stack: ComposeStack) -> None:
    base = image_bytes(BASE_IMAGE)
    sizes = {name: image_bytes(f"tokenwire-{name}:test") - base for name in (*TIERS, "init")}
    print("\nMB above the base image:", {name: round(size / 1e6) for name, size in sizes.items()})
    for tier in ("gateway", "tokenizer"):
        assert sizes[tier] < MAX_SMALL_IMAGE_BYTES
        stack.run_in(tier, "python", "-c", "import importlib.util as u; assert u.find_spec('torch') is None")
    assert "python" not in docker("image", "inspect", "--format", "{{.Config.Entrypoint}}", "tokenwire-init:test")


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_that_is_killed_comes_back(stack: ComposeStack, tier: str) -> None:
    before = stack.container(tier)
    began_s = time.monotonic()
    kill(stack, tier)
    down_s = time.monotonic() - began_s
    wait_for_answer(stack)
    print(f"\n{tier} killed: restarted after {down_s:.1f} s, an answer after {time.monotonic() - began_s:.1f} s")
    after = stack.container(tier)
    assert after["Id"] == before["Id"] and after["RestartCount"] == before["RestartCount"] + 1


def test_prometheus_reaches_every_tier_and_the_dashboard_shows_them(stack: ComposeStack) -> None:
    build_stand_in("prometheus", PROMETHEUS)
    stack.environ["PROMETHEUS_IMAGE"] = PROMETHEUS
    stack.profiles = ("observability",)
    stack.up("prometheus")
    ask_http(stack.http_url)
    url = f"http://127.0.0.1:{stack.environ['PROMETHEUS_PORT']}/api/v1/query?query="
    limit_s = time.monotonic() + 90
    jobs: set[str] = set()
    while jobs != set(TIERS):
        assert time.monotonic() < limit_s, f"only {jobs} are up"
        jobs = {each["metric"]["job"] for each in prometheus_result(url, "up == 1")}
    dashboard = json.loads((Path(__file__).parents[2] / "deploy/grafana/dashboards/tokenwire.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    while empty := [query for query in queries if not prometheus_result(url, query)]:
        assert time.monotonic() < limit_s, f"nothing for {empty}"
        time.sleep(1)
    assert len(queries) >= 8
    stack.compose("rm", "--stop", "--force", "prometheus")


def test_a_notebook_talks_with_the_stack(stack: ComposeStack) -> None:
    stack.profiles = ("dev",)
    stack.up("--build", "dev")
    print(f"\ndev: {(image_bytes('tokenwire-dev:test') - image_bytes(BASE_IMAGE)) / 1e6:.0f} MB above the base image")
    url = f"http://127.0.0.1:{stack.environ['JUPYTER_PORT']}/api/contents"
    (token, *_) = re.findall(r"http://127\.0\.0\.1:8888/lab\?token=(\w+)", stack.compose("logs", "dev"))
    with urllib.request.urlopen(f"{url}?token={token}", timeout=30) as response:
        assert "docker-compose.yml" in {each["name"] for each in json.load(response)["content"]}
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(url, timeout=30)
    refused.value.close()
    assert "Paris" in stack.run_in("dev", "python", "-c", NOTEBOOK)
    stack.compose("rm", "--stop", "--force", "dev")


def test_two_of_each_inner_tier_share_the_requests(stack: ComposeStack) -> None:
    stack.profiles = ("scale",)
    stack.environ["MODEL_THREADS"] = "1"
    print(f"\nscale: up after {stack.up():.1f} s")
    places = {
        "model": (9466, "tokenwire_model_ended_total"), "model-2": (9466, "tokenwire_model_ended_total"),
        "tokenizer": (9465, "tokenwire_tokenizer_choices_total"),
        "tokenizer-2": (9465, "tokenwire_tokenizer_choices_total"),
    }  # fmt: skip
    wait_for_metric(stack, "gateway", *READY_TOKENIZERS, 2)
    for tokenizer in ("tokenizer", "tokenizer-2"):
        wait_for_metric(stack, tokenizer, *READY_MODELS, 2)
    before = {service: stack.metric(service, *place) for service, place in places.items()}
    with Client(stack.grpc_target) as client, ThreadPoolExecutor(NUM_AT_ONCE) as threads:
        prompts = [f"{number} is a number that" for number in range(NUM_REQUESTS)]
        answers = list(threads.map(lambda prompt: client.generate(prompt, max_tokens=16).text(), prompts))
    assert all(answers)
    shares = {service: stack.metric(service, *place) - before[service] for service, place in places.items()}
    print(f"scale: {NUM_REQUESTS} requests, {NUM_AT_ONCE} at a time: {shares}")
    for tier in ("model", "tokenizer"):
        assert shares[tier] + shares[f"{tier}-2"] == NUM_REQUESTS
        assert min(shares[tier], shares[f"{tier}-2"]) >= NUM_REQUESTS / 4


def test_one_more_model_tier_is_found_by_name(stack: ComposeStack) -> None:
    stack.compose("rm", "--stop", "--force", "model-2", "tokenizer-2")
    stack.profiles = ()
    stack.up("--scale", "model=2")
    wait_for_metric(stack, "tokenizer", *READY_MODELS, 2)
    stack.up("--scale", "model=1")
    wait_for_answer(stack)


def test_down_leaves_nothing_running_and_keeps_the_models(stack: ComposeStack, models: Path) -> None:
    stack.profiles = ("*",)
    began_s = time.monotonic()
    stack.compose("down", "--volumes")
    print(f"\ndown: {time.monotonic() - began_s:.1f} s")
    label = f"label=com.docker.compose.project={stack.project}"
    for what in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
        assert docker(*what, "--filter", label).splitlines()[1:] == []  # after the heading
    assert list(models.glob("models/*/model.safetensors"))


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """Certificates for every tier, readable by whom the containers run as, and a key for callers."""
    folder = tmp_path / "certs"
    make_all(folder)
    add_key(folder / "identities.json", {"name": "test", "sha256": hash_of(KEY), "tenant": "test"})
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, 10001, 10001)
    return folder


@contextmanager
def another_stack(models: Path, certs: Path, overlay: str, **environ: str) -> Iterator[ComposeStack]:
    """The stack with a file laid over it, up for as long as the block runs."""
    user = "10001:10001" if os.geteuid() == 0 else f"{os.getuid()}:{os.getgid()}"
    running = ComposeStack(
        models, ("docker-compose.yml", overlay), environ={"CERTS": str(certs), "CERTS_USER": user, **environ}
    )
    try:
        print(f"\n{overlay}: up after {running.up('--build'):.1f} s")
        yield running
    finally:
        running.profiles = ("*",)
        running.compose("down", "--volumes")


def test_other_machines_are_served_over_tls_and_with_a_key(stack: ComposeStack, models: Path, certs: Path) -> None:
    with another_stack(models, certs, "compose.public.yml") as running:
        url = running.http_url.replace("http:", "https:")
        trusted = ssl.create_default_context(cafile=str(certs / "ca.pem"))
        assert "Paris" in ask_http(url, KEY, context=trusted)
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            ask_http(url, context=trusted)
        refused.value.close()
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            ask_http(url, KEY, context=ssl.create_default_context())
        with Client(running.grpc_target, api_key=KEY, tls=ClientTls(str(certs / "ca.pem"))) as client:
            assert client.generate("Hello", max_tokens=1).text()
        ports = running.container("gateway")["NetworkSettings"]["Ports"]
        assert "0.0.0.0" in {each["HostIp"] for each in ports["8080/tcp"]}
        # Without a certificate of the tiers' CA the tier below does not speak.
        without = ["env", "-u", "TOKENWIRE_TLS_CERTIFICATE", "-u", "TOKENWIRE_TLS_KEY", "tokenwire", "health"]
        asked = ["exec", "--no-TTY", "gateway", *without, "--target", "tokenizer:50052"]
        result = subprocess.run(["docker", "compose", *running.flags, *asked], env=running.environ, capture_output=True)
        assert result.returncode == 1


def test_envoys_between_the_tiers_let_in_the_tier_above_alone(stack: ComposeStack, models: Path, certs: Path) -> None:
    build_stand_in("envoy", ENVOY)
    with another_stack(models, certs, "compose.mesh.yml", ENVOY_IMAGE=ENVOY) as running:
        assert "Paris" in ask_http(running.http_url)
        assert "Paris" in ask_grpc(running.grpc_target)
        kill(running, "model")
        wait_for_answer(running)
        # As the gateway: past the Envoy, and to the tier after the next, whose Envoy knows another certificate.
        certificate = ["--tls-ca", "/run/secrets/ca.pem", "--tls-certificate", "/run/secrets/gateway.pem"]
        certificate += ["--tls-key", "/run/secrets/gateway-key.pem"]
        health = ["exec", "--no-TTY", "gateway", "tokenwire", "health", "--target"]
        answers = {
            target: subprocess.run(
                ["docker", "compose", *running.flags, *health, target, *flags], env=running.environ, capture_output=True
            ).returncode
            for target, flags in {
                "tokenizer:15052": certificate, "model:15053": certificate, "tokenizer:50052": [], "model:50053": [],
            }.items()
        }  # fmt: skip
        assert answers == {"tokenizer:15052": 0, "model:15053": 1, "tokenizer:50052": 1, "model:50053": 1}


def test_one_container_serves_whoever_has_the_key(stack: ComposeStack, models: Path) -> None:
    docker(
        "build", "--quiet", "--target", "all", "--tag", "tokenwire:test",
        "--build-arg", f"TORCH_INDEX={stack.environ.get('TORCH_INDEX', 'https://download.pytorch.org/whl/cpu')}", ".",
        timeout_s=600,
    )  # fmt: skip
    with one_container("-v", f"{models}:/models", "--read-only", "--tmpfs", "/tmp") as (container_id, url):
        said = wait_for_log(container_id, "Ctrl-C drains")
        (key,) = re.findall(r"Callers need this key.*\n  (\S+)", said)
        assert "Paris" in ask_http(url, key)
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            ask_http(url)
        refused.value.close()
        assert docker("exec", container_id, "tokenwire", "health", "--target", "127.0.0.1:50051") == "SERVING\n"
        began_s = time.monotonic()
        docker("stop", "--time", "40", container_id)
        state = inspected(container_id)["State"]
        assert state["ExitCode"] == 0, docker("logs", container_id)
        size = image_bytes("tokenwire:test") - image_bytes(BASE_IMAGE)
        print(f"\nall: {size / 1e6:.0f} MB above the base image, drained in {time.monotonic() - began_s:.1f} s")


@contextmanager
def one_container(*flags: str) -> Iterator[tuple[str, str]]:
    """`docker run` of the image with all tiers: its id, and where its HTTP port is."""
    (port,) = free_ports(1)
    container_id = docker("run", "--detach", "-p", f"127.0.0.1:{port}:8080", *flags, "tokenwire:test").strip()
    try:
        yield container_id, f"http://127.0.0.1:{port}"
    finally:
        docker("rm", "--force", container_id)


def image_bytes(name: str) -> int:
    return int(docker("image", "inspect", "--format", "{{.Size}}", name))


def prometheus_result(url: str, query: str) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(url + urllib.parse.quote(query), timeout=10) as response:
            found: list[dict[str, Any]] = json.load(response)["data"]["result"]
            return found
    except OSError:
        time.sleep(1)
        return []


def build_stand_in(name: str, tag: str) -> None:
    folder = Path(__file__).parent / "images"
    docker("build", "--quiet", "--tag", tag, "--file", str(folder / f"{name}.Dockerfile"), str(folder), timeout_s=300)


def kill(stack: ComposeStack, tier: str) -> None:
    """Kill a tier's processes, and wait until the engine has started it again.

    Not `docker kill`, which counts as a stop: everything but process 1, which then ends with its child's status.
    """
    restarts = stack.container(tier)["RestartCount"]
    killed = ["exec", "--no-TTY", tier, "sh", "-c", "kill -9 -1"]
    subprocess.run(["docker", "compose", *stack.flags, *killed], env=stack.environ, capture_output=True)
    limit_s = time.monotonic() + 30
    while stack.container(tier)["RestartCount"] == restarts:
        assert time.monotonic() < limit_s, f"{tier} was not started again"
        time.sleep(0.05)


def wait_for_metric(stack: ComposeStack, service: str, port: int, name: str, value: float) -> None:
    limit_s = time.monotonic() + 60
    while (found := stack.metric(service, port, name)) != value:
        assert time.monotonic() < limit_s, f"{service}: {name} is {found}"
        time.sleep(0.5)


def wait_for_answer(stack: ComposeStack, limit_s: float = 90) -> None:
    """Ask until the answer is right; whatever goes wrong until then is what a restart looks like from outside."""
    limit_s += time.monotonic()
    while True:
        try:
            assert "Paris" in ask_http(stack.http_url)
            return
        except OSError:
            assert time.monotonic() < limit_s
            time.sleep(0.1)


def wait_for_log(container_id: str, words: str, limit_s: float = 120) -> str:
    limit_s += time.monotonic()
    while words not in (said := docker("logs", container_id)):
        assert time.monotonic() < limit_s and inspected(container_id)["State"]["Running"], said
        time.sleep(0.5)
    return said
