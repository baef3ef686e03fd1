"""The overlays of deploy/kubernetes as kustomize renders them, and the schemas they are held to."""

import functools
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.interop.environments import node_with, not_to_be_had, python_with

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
COMPONENTS = sorted(path.name for path in (FOLDER / "components").iterdir())
BUILT_IN = ("v1", "apps/v1", "autoscaling/v2", "networking.k8s.io/v1", "policy/v1")
CHECK = """
import json, sys, kubernetes_validate
results = []
for resource in json.load(sys.stdin):
    try:
        kubernetes_validate.validate(resource, "1.37", strict=True)
        results.append(None)
    except Exception as error:
        results.append(f"{type(error).__name__}: {error}")
print(json.dumps(results))
"""
PROGRAM = Path(__file__).parent / "programs" / "validate_resources.mjs"

Resource = dict[str, Any]


def renderer() -> list[str]:
    """`kustomize build`, or kubectl's own."""
    if (found := shutil.which("kustomize")) is not None:
        return [found, "build"]
    if (found := shutil.which("kubectl")) is not None:
        return [found, "kustomize"]
    not_to_be_had("neither kustomize nor kubectl is installed, which render deploy/kubernetes")
    raise AssertionError


@functools.cache
def rendered(overlay: str) -> tuple[Resource, ...]:
    """Every resource of an overlay."""
    run = subprocess.run([*renderer(), str(FOLDER / "overlays" / overlay)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return tuple(yaml.safe_load_all(run.stdout))


def of_kind(overlay: str, kind: str) -> list[Resource]:
    return [resource for resource in rendered(overlay) if resource["kind"] == kind]


def containers(overlay: str) -> Iterator[tuple[Resource, Resource, Resource]]:
    """Deployment, pod and container of every tier."""
    for deployment in of_kind(overlay, "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        yield deployment, pod, container


def problems(resources: Sequence[Resource]) -> list[str]:
    """What the schemas have against resources: Kubernetes' own, strictly, and those of the kinds' own projects."""
    own = [resource for resource in resources if resource["apiVersion"] in BUILT_IN]
    others = [resource for resource in resources if resource["apiVersion"] not in BUILT_IN]
    return [*_ask([python_with("kubernetes", "kubernetes-validate==1.37.0"), "-c", CHECK], own), *_others(others)]


def _others(resources: Sequence[Resource]) -> list[str]:
    if not resources:
        return []
    node, folder = node_with(
        "kubernetes", "@kubernetes-models/gateway-api@2.0.0", "@kubernetes-models/prometheus-operator@6.0.0",
        "@kubernetes-models/istio@3.0.1", "@kubernetes-models/cert-manager@6.0.0",
    )  # fmt: skip
    return _ask([node, PROGRAM, folder], resources)


def _ask(command: Sequence[str | Path], resources: Sequence[Resource]) -> list[str]:
    run = subprocess.run(command, input=json.dumps(resources), capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) == len(resources)
    return [
        f"{resource['kind']} {resource['metadata']['name']}: {problem}"
        for resource, problem in zip(resources, found, strict=True)
        if problem is not None
    ]
