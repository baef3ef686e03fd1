"""The Compose files and the Dockerfile say what they must, as far as can be seen without starting anything."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
TIERS = ("gateway", "tokenizer", "model")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


@pytest.mark.parametrize(
    "added", [[], ["compose.gpu.yml"], ["compose.replicas.yml"], ["compose.replicas.yml", "compose.gpu-replicas.yml"]]
)
def test_docker_compose_accepts_the_files(added: list[str]) -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("docker compose is not installed")
    flags = [word for file in ("docker-compose.yml", *added) for word in ("-f", file)]
    result = subprocess.run(["docker", "compose", *flags, "config", "-q"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_nothing_is_published_beyond_the_loopback(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("tier", TIERS)
def test_tiers_run_locked_down(services: dict[str, Any], tier: str) -> None:
    service = services[tier]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["build"]["target"] == tier
    assert service["environment"][f"TOKENWIRE_{tier.upper()}_INSECURE"] == "true"


def test_each_tier_waits_for_the_one_below_to_be_healthy(services: dict[str, Any]) -> None:
    assert services["gateway"]["depends_on"] == {"tokenizer": {"condition": "service_healthy"}}
    assert services["tokenizer"]["depends_on"] == {"model": {"condition": "service_healthy"}}
    assert services["model"]["depends_on"] == {"fetch": {"condition": "service_completed_successfully"}}


def test_the_gpu_file_reserves_a_gpu() -> None:
    gpu = yaml.safe_load((ROOT / "compose.gpu.yml").read_text())["services"]
    (device,) = gpu["model"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_the_replicas_file_adds_a_model_tier_that_the_tokenizer_tier_knows() -> None:
    added = yaml.safe_load((ROOT / "compose.replicas.yml").read_text())["services"]
    assert added["model-1"]["extends"] == {"file": "docker-compose.yml", "service": "model"}
    targets = added["tokenizer"]["environment"]["TOKENWIRE_TOKENIZER_MODEL_TARGETS"].split(",")
    assert targets == [f"{name}:50053" for name in ("model", "model-1")]
    assert added["tokenizer"]["depends_on"] == {"model-1": {"condition": "service_healthy"}}
    for name in ("model", "model-1"):
        assert "TOKENWIRE_MODEL_THREADS" in added[name]["environment"]
        assert "ports" not in added[name]


def test_the_gpu_replicas_file_gives_each_a_gpu_of_its_own() -> None:
    gpu = yaml.safe_load((ROOT / "compose.gpu-replicas.yml").read_text())["services"]
    devices = [gpu[name]["deploy"]["resources"]["reservations"]["devices"][0] for name in ("model", "model-1")]
    assert [device["device_ids"] for device in devices] == [["0"], ["1"]]


def stages() -> dict[str, str]:
    """The Dockerfile's stages by name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("tier", TIERS)
def test_images_check_their_health_and_take_signals(tier: str) -> None:
    stage = stages()[tier]
    assert 'CMD ["tokenwire", "health"' in stage
    assert 'ENTRYPOINT ["python", "-m"' in stage
    assert f"--from=build-{tier} " in stage


def test_only_the_model_image_carries_torch_and_none_runs_as_root() -> None:
    assert [name for name, stage in stages().items() if "torch==" in stage] == ["build-model"]
    assert "USER 10001:10001" in stages()["runtime"]
    assert not any("USER root" in stage for stage in stages().values())
