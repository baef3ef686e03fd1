"""The Compose files and the Dockerfile say what they must, as far as can be seen without an engine.

On an engine: tests/e2e/test_compose.py.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import GatewaySettings
from model_svc.settings import ModelTierSettings
from tokenizer_svc.settings import TokenizerTierSettings
from tokenwire.settings import settings_from
from tokenwire.version import __version__

ROOT = Path(__file__).parent.parent.parent
TIERS = ("gateway", "tokenizer", "model")
SETTINGS: dict[str, type[Any]] = {
    "gateway": GatewaySettings, "tokenizer": TokenizerTierSettings, "model": ModelTierSettings,
}  # fmt: skip
PROFILES = ("scale", "observability", "dev")
OVERLAYS = ("compose.gpu.yml", "compose.public.yml", "compose.mesh.yml")
TARGETS = (*TIERS, "init", "all", "dev")


class ComposeLoader(yaml.SafeLoader):
    """YAML with Compose's own tag for what replaces a value instead of being added to it."""


ComposeLoader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))
ComposeLoader.add_constructor("!reset", lambda loader, node: None)


def services_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load((ROOT / name).read_text(), ComposeLoader)["services"]
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return services_of("docker-compose.yml")


@pytest.mark.extended
@pytest.mark.parametrize("profiles", [(), *((profile,) for profile in PROFILES), PROFILES])
@pytest.mark.parametrize(
    "overlays", [(), *((overlay,) for overlay in OVERLAYS), ("compose.gpu.yml", "compose.public.yml")]
)
def test_docker_compose_accepts_every_profile(profiles: tuple[str, ...], overlays: tuple[str, ...]) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")
    flags = [word for file in ("docker-compose.yml", *overlays) for word in ("-f", file)]
    flags += [word for profile in profiles for word in ("--profile", profile)]
    result = subprocess.run(["docker", "compose", *flags, "config", "-q"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_without_a_profile_there_are_the_three_tiers_and_what_fills_the_models(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "profiles" not in service} == {"init", *TIERS}
    assert {profile for service in services.values() for profile in service.get("profiles", ())} == set(PROFILES)


def test_nothing_is_published_beyond_the_loopback(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 6
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert not any("network_mode" in service or "privileged" in service for service in services.values())


def test_everything_is_locked_down(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("read_only") is (None if name == "dev" else True), name
        assert ("cap_add" in service) == (name == "init"), name
        assert str(service.get("user", "")).startswith("0") == (name == "init"), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_lock_down_what_they_add_and_unlock_nothing(services: dict[str, Any], overlay: str) -> None:
    for name, service in services_of(overlay).items():
        assert not {"privileged", "pid", "ipc", "cap_add", "devices"} & set(service), name
        assert service.get("network_mode", "service:").startswith("service:"), name
        assert not str(service.get("user", "1")).startswith(("0", "root")), name
        if name in services:
            assert not {"read_only", "cap_drop", "security_opt"} & set(service), name
        else:
            assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert service["user"], name


@pytest.mark.parametrize("tier", TIERS)
def test_pods_are_locked_down_before_anything_is_rendered(tier: str) -> None:
    """Rendered, with all overlays: test_kubernetes.py."""
    resources = yaml.safe_load_all((ROOT / f"deploy/kubernetes/base/{tier}.yaml").read_text())
    (pod,) = (each["spec"]["template"]["spec"] for each in resources if "template" in each.get("spec", {}))
    assert (
        pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    )
    assert not pod["automountServiceAccountToken"] and not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert not any("hostPath" in volume for volume in pod["volumes"])
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("tier", TIERS)
def test_tiers_are_built_from_their_target_and_told_where_to_listen(services: dict[str, Any], tier: str) -> None:
    service = services[tier]
    assert service["build"]["target"] == tier
    assert service["environment"][f"TOKENWIRE_{tier.upper()}_INSECURE"] == "true"
    assert service["environment"][f"TOKENWIRE_{tier.upper()}_HOST"] == "0.0.0.0"
    assert ":/models:ro" in "".join(service.get("volumes", [":/models:ro"]))


def test_each_tier_waits_for_the_one_below_to_be_healthy(services: dict[str, Any]) -> None:
    assert services["gateway"]["depends_on"] == {"tokenizer": {"condition": "service_healthy"}}
    for name in ("tokenizer", "tokenizer-2"):
        assert services[name]["depends_on"] == {"model": {"condition": "service_healthy"}}
    for name in ("model", "model-2"):
        assert services[name]["depends_on"] == {"init": {"condition": "service_completed_successfully"}}


def test_a_tier_gets_longer_to_end_than_it_takes_to_drain(services: dict[str, Any]) -> None:
    for tier in TIERS:
        assert services[tier]["stop_grace_period"] == "40s"  # drain-timeout-s is 30 unless set


def test_the_second_of_a_tier_is_as_the_first_and_known_to_those_above(services: dict[str, Any]) -> None:
    for tier in ("model", "tokenizer"):
        second = dict(services[f"{tier}-2"])
        assert second.pop("profiles") == ["scale"]
        assert second.pop("networks") == {"default": {"aliases": [tier]}}
        assert second == services[tier]
    assert services["tokenizer"]["environment"]["TOKENWIRE_TOKENIZER_MODEL_TARGETS"] == "dns:model:50053"
    assert services["gateway"]["environment"]["TOKENWIRE_GATEWAY_TOKENIZER_TARGETS"] == "dns:tokenizer:50052"


def defaults() -> dict[str, str]:
    """Of deploy/docker/tiers.env."""
    lines = (ROOT / "deploy/docker/tiers.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("tier", TIERS)
def test_what_outranks_tokenwire_env_is_named(services: dict[str, Any], tier: str) -> None:
    files = services[tier]["env_file"]
    assert files == ["deploy/docker/tiers.env", {"path": "tokenwire.env", "required": False}], "the later one wins"
    own = services[tier]["environment"]
    assert not set(own) & set(defaults())
    page = (ROOT / "docs/operations.md").read_text()
    (named,) = re.findall(r"^- \*\*Outranking `tokenwire.env`\*\*(.*?)(?=^- )", page, re.MULTILINE | re.DOTALL)
    for variable in own:
        assert f"`{variable}`" in named or f"`TOKENWIRE_<TIER>_{variable.split('_', 2)[2]}`" in named, variable


def test_defaults_are_settings_and_tell_a_collector_only_where_one_is_named(services: dict[str, Any]) -> None:
    given = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in defaults().items()}
    found = {tier: settings_from(kind, tier, {}, given) for tier, kind in SETTINGS.items()}
    assert {settings.trace_endpoint for settings in found.values()} == {""}
    traced = given | {name: "http://jaeger:4317" for name, value in defaults().items() if "TRACE_ENDPOINT" in value}
    found = {tier: settings_from(kind, tier, {}, traced) for tier, kind in SETTINGS.items()}
    assert {settings.trace_endpoint for settings in found.values()} == {"http://jaeger:4317"}
    assert services["jaeger"]["command"][-1].endswith("=0.0.0.0:4317")


def test_a_token_of_the_hub_reaches_who_fetches(services: dict[str, Any]) -> None:
    assert services["init"]["environment"] == ["HF_TOKEN"]
    assert not any("HF_TOKEN" in service.get("environment", ()) for name, service in services.items() if name != "init")


def test_every_image_that_serves_can_send_traces() -> None:
    for stage in ("build-gateway", "build-tokenizer", "torch"):
        (wanted,) = re.findall(r"python requirements.py (.*) >", stages()[stage])
        assert "tracing" in wanted.split(), stage
    assert re.search(r"^FROM torch AS build-all$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_the_gpu_file_reserves_a_gpu_for_each_model_tier() -> None:
    gpu = services_of("compose.gpu.yml")
    for name, default in (("model", "${MODEL_GPU:-0}"), ("model-2", "${MODEL_2_GPU:-1}")):
        (device,) = gpu[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "device_ids": [default], "capabilities": ["gpu"]}
        assert gpu[name]["ulimits"] == {"memlock": -1}
        assert gpu[name]["build"]["args"] == {"TORCH_INDEX": "${TORCH_INDEX-}", "RUNTIME_PACKAGES": "gcc libc6-dev"}


def test_for_other_machines_every_tier_has_tls_and_nothing_is_insecure() -> None:
    public = services_of("compose.public.yml")
    for name, service in public.items():
        tier = name.removesuffix("-2")
        variables, prefix = service["environment"], f"TOKENWIRE_{tier.upper()}_"
        assert variables[f"{prefix}INSECURE"] == "false"
        assert variables[f"{prefix}TLS_CERTIFICATE"] == f"/run/secrets/{tier}.pem"
        asks_who = "IDENTITY_FILE" if tier == "gateway" else "TLS_CLIENT_CA"
        assert variables[prefix + asks_who].startswith("/run/secrets/")
        paths = {Path(value).name for value in variables.values() if value.startswith("/run/secrets/")}
        assert paths == set(service["secrets"])
    assert set(public) == {*TIERS, "model-2", "tokenizer-2"}


def test_in_the_mesh_inner_tiers_listen_on_the_loopback_of_their_envoy() -> None:
    mesh = services_of("compose.mesh.yml")
    for name in ("model", "model-2", "tokenizer", "tokenizer-2"):
        tier = name.removesuffix("-2")
        assert mesh[name]["network_mode"] == f"service:{name}-envoy"
        assert mesh[name]["environment"][f"TOKENWIRE_{tier.upper()}_HOST"] == "127.0.0.1"
        assert mesh[name]["environment"][f"TOKENWIRE_{tier.upper()}_INSECURE"] == "false"
        assert mesh[f"{name}-envoy"]["networks"] == {"default": {"aliases": [tier]}}
        assert mesh[f"{name}-envoy"].get("profiles") == (["scale"] if name.endswith("-2") else None)
        assert mesh[f"{name}-envoy"]["read_only"] is True and mesh[f"{name}-envoy"]["cap_drop"] == ["ALL"]
        shown = {secret["target"]: secret["source"] for secret in mesh[f"{name}-envoy"]["secrets"]}
        assert shown["/etc/envoy/certs/tier-key.pem"] == f"{tier}-key.pem"


def test_prometheus_asks_every_tier_at_its_metrics_port() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    found = {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}
    assert {job: (source["names"][0], source["port"]) for job, source in found.items()} == {
        "gateway": ("gateway", 9464), "tokenizer": ("tokenizer", 9465), "model": ("model", 9466),
    }  # fmt: skip


def stages() -> dict[str, str]:
    """The Dockerfile's stages by name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("target", TARGETS)
def test_images_start_under_tini(target: str) -> None:
    assert 'ENTRYPOINT ["tini", "--", ' in stages()[target]


@pytest.mark.parametrize("tier", [*TIERS, "all"])
def test_images_ask_for_their_health_over_grpc(tier: str) -> None:
    assert 'CMD ["tokenwire", "health", "--target", "127.0.0.1:5005' in stages()[tier]
    assert f"--from=build-{tier} " in stages()[tier]


def test_an_image_is_all_of_it_where_no_target_is_named() -> None:
    assert list(stages())[-1] == "all"
    assert "TOKENWIRE_UP_MAKE_KEY=true" in stages()["all"]
    assert "INSECURE" not in (ROOT / "Dockerfile").read_text()


def test_only_images_that_compute_carry_torch_and_none_runs_as_root() -> None:
    assert [name for name, stage in stages().items() if "torch==" in stage] == ["torch"]
    for name in ("runtime", "runtime-torch"):
        assert re.findall(r"^USER (\S+)$", stages()[name], re.MULTILINE)[-1] == "10001:10001"
    assert not any("USER" in stages()[target].replace("USER=", "") for target in TARGETS)


def test_labels_name_this_release() -> None:
    assert f"ARG VERSION={__version__}\n" in stages()["runtime"]
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in stages()["runtime"]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    files = [ROOT / "Dockerfile", *(ROOT / "tests/e2e/images").glob("*.Dockerfile")]
    result = subprocess.run([hadolint, *files], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(
        r"^COPY (?:--chmod=\d+ )?(?!--from)([^.\n].*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    words = {word for line in copied for word in line.split() if not word.startswith("--")}
    assert words == {"constraints.txt", "pyproject.toml", "scripts/requirements.py", "deploy/docker/as-owner"}
    assert words <= kept
    assert all((ROOT / each).exists() for each in kept)
