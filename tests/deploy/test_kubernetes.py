"""Every overlay of deploy/kubernetes: rendered, held to the schemas and to what the tiers read, listen on and count."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from gateway.metrics import GatewayMetrics
from gateway.settings import GatewaySettings
from model_svc.metrics import ConstraintMetrics, EngineMetrics
from model_svc.settings import ModelTierSettings
from tests.deploy.manifests import COMPONENTS, FOLDER, OVERLAYS, containers, of_kind, problems, rendered
from tokenizer_svc.metrics import TokenizerMetrics
from tokenizer_svc.settings import TokenizerTierSettings
from tokenwire.cli.doctor import SHARED_VARIABLES
from tokenwire.server import LIVENESS
from tokenwire.settings import SettingError, settings_from

pytestmark = pytest.mark.extended

SETTINGS: dict[str, type[Any]] = {
    "gateway": GatewaySettings, "tokenizer": TokenizerTierSettings, "model": ModelTierSettings,
}  # fmt: skip
ABOVE = {"tokenizer": "gateway", "model": "tokenizer"}
PARTS = {"grpc": "port", "http": "http_port", "metrics": "metrics_port"}

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@every_overlay
def test_the_schemas_accept_it(overlay: str) -> None:
    assert problems(rendered(overlay)) == []


def test_the_schemas_would_refuse() -> None:
    """What the test above relies on."""
    by_kind = {resource["kind"]: resource for resource in (*rendered("production"), *rendered("istio"))}
    wrong = []
    for kind, path, value in (
        ("Deployment", ("spec", "replikas"), 1),
        ("GRPCRoute", ("spec", "rules"), "none"),
        ("ServiceMonitor", ("spec", "endpoints"), 5),
        ("PrometheusRule", ("spec", "groups"), [{"name": "no rules", "rules": [{"alert": "x"}]}]),
        ("Certificate", ("spec", "secretName"), None),
        ("VirtualService", ("spec", "hosts"), {}),
    ):
        resource = {**by_kind[kind], path[0]: {**by_kind[kind][path[0]], path[1]: value}}
        wrong.append(resource)
    assert len(problems(wrong)) == len(wrong)


def test_every_component_is_in_an_overlay() -> None:
    used = set()
    for overlay in OVERLAYS:
        kustomization = yaml.safe_load((FOLDER / "overlays" / overlay / "kustomization.yaml").read_text())
        used |= {path.rpartition("/")[2] for path in kustomization.get("components", ())}
    assert used == set(COMPONENTS)


def environment(container: dict[str, Any]) -> dict[str, str]:
    """A container's variables; what comes from elsewhere by a stand-in."""
    found = {"TOKENWIRE_LOG": "info,json"}
    return {each["name"]: each.get("value") or found.get(each["name"], "a-model") for each in container["env"]}


@every_overlay
def test_tiers_read_every_variable(overlay: str) -> None:
    for _, _, container in containers(overlay):
        tier, given = container["name"], environment(container)
        settings = settings_from(SETTINGS[tier], tier, {}, given)
        prefix = f"TOKENWIRE_{tier.upper()}_"
        assert {name for name in given if not name.startswith(prefix)} <= set(SHARED_VARIABLES)
        assert settings.host == "0.0.0.0"
        assert settings.insecure or getattr(settings, "identity_file", "") or settings.asks_who, "else it refuses"
        assert (settings.tls is None) == (f"{prefix}TLS_CERTIFICATE" not in given)


def test_a_variable_that_no_tier_reads_is_found() -> None:
    _, _, container = next(containers("cpu"))
    given = {**environment(container), f"TOKENWIRE_{container['name'].upper()}_MODELL": "x"}
    with pytest.raises(SettingError):
        settings_from(SETTINGS[container["name"]], container["name"], {}, given)


@every_overlay
def test_ports_are_the_tiers_own(overlay: str) -> None:
    for _, _, container in containers(overlay):
        settings = SETTINGS[container["name"]]()
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {name: getattr(settings, PARTS[name]) for name in ports}
    named = {
        container["name"]: {port["name"] for port in container["ports"]} for _, _, container in containers(overlay)
    }
    for service in of_kind(overlay, "Service"):
        tier = service["spec"]["selector"]["app.kubernetes.io/name"]
        settings = SETTINGS[tier]()
        for port in service["spec"]["ports"]:
            assert port["port"] == getattr(settings, PARTS[port["name"]]) and port["targetPort"] in named[tier]


@every_overlay
def test_tiers_find_each_other(overlay: str) -> None:
    headless = {
        service["metadata"]["name"]: service["spec"]["selector"]["app.kubernetes.io/name"]
        for service in of_kind(overlay, "Service")
        if service["spec"].get("clusterIP") == "None"
    }
    for _, _, container in containers(overlay):
        for variable, value in environment(container).items():
            if not variable.endswith("_TARGETS"):
                continue
            host, port = re.fullmatch(r"dns:///([\w-]+):(\d+)", value).groups()  # type: ignore[union-attr]
            below = headless[host]
            assert ABOVE[below] == container["name"] and int(port) == SETTINGS[below]().port


@every_overlay
def test_pods_have_time_to_drain(overlay: str) -> None:
    for _, pod, container in containers(overlay):
        settings = settings_from(SETTINGS[container["name"]], container["name"], {}, environment(container))
        before_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        readiness = container["readinessProbe"]
        assert pod["terminationGracePeriodSeconds"] >= before_s + settings.drain_timeout_s + 10
        assert settings.drain_timeout_s >= 60 and not settings.max_connection_age_grace_s, "nothing is cut for its age"
        assert before_s >= 2 * 3 or readiness["periodSeconds"] > 3


@every_overlay
def test_probes_ask_what_they_mean(overlay: str) -> None:
    for _, _, container in containers(overlay):
        tls = any(name.endswith("_TLS_CERTIFICATE") and "UPSTREAM" not in name for name in environment(container))
        live, ready = container["livenessProbe"], container["readinessProbe"]
        if tls:
            assert "grpc" not in live and "grpc" not in ready, "a kubelet's gRPC probe cannot speak TLS"
            assert {"tcpSocket", "httpGet"} & set(live) and {"exec", "httpGet"} & set(ready)
        else:
            port = SETTINGS[container["name"]]().port
            assert live["grpc"] == container["startupProbe"]["grpc"] == {"port": port, "service": LIVENESS}
            assert ready["grpc"]["port"] == port and not ready["grpc"].get("service")


@every_overlay
def test_pods_are_locked_down(overlay: str) -> None:
    for _, pod, container in containers(overlay):
        assert pod["enableServiceLinks"] is False and pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 10001
        for each in (container, *pod.get("initContainers", ())):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            mounted = {mount["name"] for mount in each["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["volumes"]}


@every_overlay
def test_selectors_select(overlay: str) -> None:
    labels = {
        deployment["metadata"]["name"]: deployment["spec"]["template"]["metadata"]["labels"]
        for deployment in of_kind(overlay, "Deployment")
    }
    kinds = ("Service", "PodDisruptionBudget", "NetworkPolicy", "AuthorizationPolicy")
    selectors = [
        selector.get("matchLabels", selector)
        for kind in kinds
        for resource in of_kind(overlay, kind)
        for key, selector in resource["spec"].items()
        if key in ("selector", "podSelector")
    ]
    assert len(selectors) >= 12
    for selector in selectors:
        assert any(selector.items() <= have.items() for have in labels.values()), selector
    for policy in of_kind(overlay, "NetworkPolicy"):
        tier = policy["metadata"]["name"]
        callers = [rule.get("from") for rule in policy["spec"]["ingress"] if {"port": "grpc"} in rule["ports"]]
        if tier in ABOVE:
            assert callers == [[{"podSelector": {"matchLabels": {"app.kubernetes.io/name": ABOVE[tier]}}}]]


def referred(overlay: str) -> Iterator[tuple[str, str]]:
    """Kind and name of what resources name that is not a Secret."""
    for _, pod, container in containers(overlay):
        yield "ServiceAccount", pod["serviceAccountName"]
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        for variable in container["env"]:
            if "configMapKeyRef" in variable.get("valueFrom", {}):
                yield "ConfigMap", variable["valueFrom"]["configMapKeyRef"]["name"]
    for autoscaler in of_kind(overlay, "HorizontalPodAutoscaler"):
        yield autoscaler["spec"]["scaleTargetRef"]["kind"], autoscaler["spec"]["scaleTargetRef"]["name"]
    for route in (*of_kind(overlay, "GRPCRoute"), *of_kind(overlay, "HTTPRoute")):
        yield "Gateway", route["spec"]["parentRefs"][0]["name"]
        for rule in route["spec"]["rules"]:
            yield "Service", rule["backendRefs"][0]["name"]


@every_overlay
def test_what_is_named_is_there(overlay: str) -> None:
    there = {(resource["kind"], resource["metadata"]["name"]) for resource in rendered(overlay)}
    assert set(referred(overlay)) <= there
    namespaces = {
        resource["metadata"].get("namespace") for resource in rendered(overlay) if resource["kind"] != "Namespace"
    }
    assert namespaces == {"tokenwire"}


@pytest.mark.parametrize("overlay", ["production", "istio"])
def test_rules_of_alerts_know_the_jobs(overlay: str) -> None:
    """A ServiceMonitor's job is its Service's name."""
    rules = of_kind(overlay, "PrometheusRule")
    jobs = {job for rule in rules for job in re.findall(r'absent\(up{job="(\w+)"}\)', str(rule))}
    services = {service["metadata"]["name"] for service in of_kind(overlay, "Service")}
    assert jobs == set(SETTINGS) <= services


@pytest.mark.parametrize("overlay", ["production", "istio"])
def test_every_pod_is_scraped_once(overlay: str) -> None:
    monitors = of_kind(overlay, "ServiceMonitor")
    assert len(monitors) == 3
    for monitor in monitors:
        (endpoint,) = monitor["spec"]["endpoints"]
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (without,) = monitor["spec"]["selector"]["matchExpressions"]
        assert without["operator"] == "DoesNotExist"
        chosen = [
            service
            for service in of_kind(overlay, "Service")
            if wanted <= service["metadata"]["labels"].items() and without["key"] not in service["metadata"]["labels"]
        ]
        assert len(chosen) == 1
        assert endpoint["port"] in {port["name"] for port in chosen[0]["spec"]["ports"]}


def metric_names() -> set[str]:
    """Of every tier."""
    registry = CollectorRegistry()
    GatewayMetrics(registry), TokenizerMetrics(registry), EngineMetrics(registry), ConstraintMetrics(registry)
    return {sample for family in registry.collect() for sample in (family.name, f"{family.name}_total")}


@every_overlay
def test_a_volume_of_one_node_keeps_its_pods_there(overlay: str) -> None:
    (claim,) = of_kind(overlay, "PersistentVolumeClaim")
    labels = {
        deployment["metadata"]["name"]: deployment["spec"]["template"]["metadata"]["labels"]
        for deployment in of_kind(overlay, "Deployment")
    }
    followed = {}
    tolerated = {}
    for _, pod, container in containers(overlay):
        mounts = any("persistentVolumeClaim" in volume for volume in pod["volumes"])
        assert ("affinity" in pod) == (mounts and claim["spec"]["accessModes"] == ["ReadWriteOnce"])
        tolerated[container["name"]] = pod.get("tolerations")
        if "affinity" in pod:
            (term,) = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            assert term["topologyKey"] == "kubernetes.io/hostname"
            wanted = term["labelSelector"]["matchLabels"].items()
            followed[container["name"]] = {tier for tier, have in labels.items() if wanted <= have.items()}
    if followed:  # the first pod of all is one that matches its own term, and it may need a GPU
        assert followed == {"model": {"model", "tokenizer"}, "tokenizer": {"model"}}
        assert tolerated["tokenizer"] == tolerated["model"]
    else:
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@every_overlay
def test_who_only_fetches_needs_no_cuda(overlay: str) -> None:
    for _, pod, container in containers(overlay):
        for each in pod.get("initContainers", ()):
            image = each["image"].partition(":")[0]
            assert image == (
                pod["containers"][0]["image"].partition(":")[0] if container["name"] == "model" else "tokenwire-init"
            )


def test_traces_reach_their_collector() -> None:
    for _, _, container in containers("traced"):
        settings = settings_from(SETTINGS[container["name"]], container["name"], {}, environment(container))
        assert (settings.trace_endpoint, settings.trace_ratio) == ("http://otel-collector.observability:4317", 0.1)
    for policy in of_kind("traced", "NetworkPolicy"):
        (rule,) = (rule for rule in policy["spec"]["egress"] if {"port": 4317} in rule["ports"])
        (to,) = rule["to"]
        assert to == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}


def test_autoscalers_ask_for_what_is_counted() -> None:
    adapter = yaml.safe_load((FOLDER / "components" / "autoscaling" / "prometheus-adapter.yaml").read_text())
    rules = [*adapter["rules"], *adapter["externalRules"]]
    used = set(re.findall(r"tokenwire_\w+", " ".join(rule["metricsQuery"] + rule["seriesQuery"] for rule in rules)))
    assert used and used <= metric_names()
    made = {"Pods": {rule["name"]["as"] for rule in adapter["rules"]}}
    made["External"] = {rule["name"]["as"] for rule in adapter["externalRules"]}
    (model,) = (a for a in of_kind("production", "HorizontalPodAutoscaler") if a["metadata"]["name"] == "model")
    asked = {(metric["type"], metric[metric["type"].lower()]["metric"]["name"]) for metric in model["spec"]["metrics"]}
    assert asked == {(kind, name) for kind, names in made.items() for name in names}
    assert not any("replicas" in deployment["spec"] for deployment in of_kind("production", "Deployment"))
