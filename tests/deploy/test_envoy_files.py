"""The files of deploy/envoy, as far as can be seen without Envoy: no clock ends a stream, and what is named exists."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.page.routes import LIVE_PATH
from gateway.settings import GatewaySettings
from model_svc.settings import ModelTierSettings
from tokenizer_svc.settings import TokenizerTierSettings

FOLDER = Path(__file__).parents[2] / "deploy" / "envoy"
FILES = sorted(FOLDER.rglob("*.yaml"))
MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a document."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from nodes(value)


ALL = [node for path in FILES for node in nodes(yaml.safe_load(path.read_text()))]


def test_no_clock_ends_a_stream() -> None:
    managers = [node for node in ALL if node.get("@type") == MANAGER]
    assert len(managers) == 5
    for manager in managers:
        assert (manager["stream_idle_timeout"], manager["request_timeout"]) == ("0s", "0s")
        assert "max_connection_duration" not in manager["common_http_protocol_options"]
    routes = [node["route"] for node in ALL if "cluster" in node.get("route", {})]
    assert len(routes) == 9
    assert all((route["timeout"], route["idle_timeout"]) == ("0s", "0s") for route in routes)
    assert not any("max_stream_duration" in node for node in ALL)


def test_streams_that_have_begun_are_not_tried_again() -> None:
    """None of the conditions holds once a response has begun."""
    allowed = {"connect-failure", "refused-stream", "reset", "unavailable", "cancelled"}
    policies = [node["retry_policy"] for node in ALL if "retry_policy" in node]
    assert len(policies) == 3
    for policy in policies:
        assert set(policy["retry_on"].split(",")) <= allowed and policy["num_retries"] <= 2


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(FOLDER)) for path in FILES])
def test_files_that_are_named_exist(path: Path) -> None:
    for node in nodes(yaml.safe_load(path.read_text())):
        source = node.get("path_config_source")
        if source is not None:
            file = FOLDER / Path(source["path"]).relative_to("/etc/envoy")
            assert file.is_file() and source["watched_directory"]["path"] == str(Path(source["path"]).parent)


def test_clusters_lead_to_the_tiers_ports() -> None:
    ports = {
        "gateway_grpc": GatewaySettings().port,
        "gateway_http": GatewaySettings().http_port,
        "local_tokenizer": TokenizerTierSettings().port,
        "local_model": ModelTierSettings().port,
        "tokenizers": 15052,
        "models": 15053,
    }
    clusters = [node for node in ALL if "load_assignment" in node]
    assert {cluster["name"] for cluster in clusters} == set(ports)
    for cluster in clusters:
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        (backend,) = endpoints["lb_endpoints"]
        assert backend["endpoint"]["address"]["socket_address"]["port_value"] == ports[cluster["name"]]


def test_the_edge_keeps_from_callers_what_is_for_those_inside() -> None:
    (routes,) = yaml.safe_load((FOLDER / "edge" / "routes.yaml").read_text())["resources"]
    assert routes["request_headers_to_remove"] == ["traceparent", "tracestate"]
    (host,) = routes["virtual_hosts"]
    hidden = [route["match"]["path"] for route in host["routes"] if route["match"].keys() == {"path"}]
    assert set(hidden) == {"/metrics", LIVE_PATH}
    assert all(route["direct_response"] == {"status": 404} for route in host["routes"] if "path" in route["match"])
    last = host["routes"][-1]
    assert last["match"] == {"prefix": "/"} and last["route"]["cluster"] == "gateway_http", "after those"


def test_the_edge_differs_without_tls_in_that_alone() -> None:
    with_tls, without = (
        yaml.safe_load((FOLDER / "edge" / name).read_text())["resources"]
        for name in ("clusters.yaml", "clusters-without-tls.yaml")
    )
    for cluster in with_tls:
        assert cluster.pop("transport_socket")
    assert with_tls == without
