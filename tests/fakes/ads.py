"""A small control plane that speaks ADS, as gRPC's own xDS client asks for it: listeners, clusters and endpoints."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2

pb = grpc.protos("tests/fakes/ads.proto")
TYPE = "type.googleapis.com/"
FILTERS = TYPE + "envoy.extensions.filters"
SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
EDS = 3
"""Cluster.DiscoveryType: the endpoints are asked for by themselves."""
HEALTHY, UNHEALTHY = 1, 2


class ControlPlane:
    """Serves what `endpoints` says: addresses by the name of a service."""

    def __init__(self) -> None:
        self.port = 0
        self.unhealthy: set[str] = set()
        """Addresses that are told as such."""
        self._endpoints: dict[str, Sequence[str]] = {}
        self._version = 0
        self._changed = asyncio.Condition()

    @property
    def bootstrap(self) -> str:
        """For GRPC_XDS_BOOTSTRAP_CONFIG."""
        server = {
            "server_uri": f"127.0.0.1:{self.port}",
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }
        return json.dumps({"xds_servers": [server], "node": {"id": "tokenwire-test"}})

    async def serve(self, endpoints: Mapping[str, Sequence[str]]) -> None:
        """These are the services and where they are now."""
        async with self._changed:
            self._endpoints = dict(endpoints)
            self._version += 1
            self._changed.notify_all()

    async def stream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Each type that is asked for, and again whenever something changed."""
        wanted: dict[str, Sequence[str]] = {}
        sent: dict[str, tuple[int, Sequence[str]]] = {}

        async def listen() -> None:
            async for request in requests:
                assert not request.HasField("error_detail"), request.error_detail
                async with self._changed:
                    wanted[request.type_url] = tuple(request.resource_names)
                    self._changed.notify_all()

        listening = asyncio.create_task(listen())
        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._due(wanted, sent) or listening.done())
                    if listening.done():
                        listening.result()
                        return
                    due = self._due(wanted, sent)
                    version = self._version
                for type_url in due:
                    sent[type_url] = (version, wanted[type_url])
                    yield self._response(type_url, wanted[type_url], version)
        finally:
            listening.cancel()

    def _due(self, wanted: Mapping[str, Sequence[str]], sent: Mapping[str, tuple[int, Sequence[str]]]) -> list[str]:
        if not self._version:
            return []
        return [url for url, names in wanted.items() if sent.get(url) != (self._version, names)]

    def _response(self, type_url: str, names: Sequence[str], version: int) -> Any:
        make = {
            "envoy.config.listener.v3.Listener": listener,
            "envoy.config.cluster.v3.Cluster": cluster,
            "envoy.config.endpoint.v3.ClusterLoadAssignment": self._assignment,
        }[type_url.removeprefix(TYPE)]
        response = pb.DiscoveryResponse(type_url=type_url, version_info=str(version), nonce=str(version))
        for name in names:
            if name in self._endpoints:
                response.resources.append(any_pb2.Any(type_url=type_url, value=make(name).SerializeToString()))
        return response

    def _assignment(self, name: str) -> Any:
        assignment = pb.ClusterLoadAssignment(cluster_name=name)
        locality = assignment.endpoints.add()
        locality.load_balancing_weight.value = 1
        locality.locality.zone = "here"
        for address in self._endpoints[name]:
            host, _, port = address.rpartition(":")
            endpoint = locality.lb_endpoints.add()
            endpoint.endpoint.address.socket_address.address = host
            endpoint.endpoint.address.socket_address.port_value = int(port)
            bad = address in self.unhealthy
            endpoint.health_status = UNHEALTHY if bad else HEALTHY
        return assignment


def listener(name: str) -> Any:
    """Leads to the cluster of the same name."""
    route = pb.RouteConfiguration(name=name)
    host = route.virtual_hosts.add(name=name, domains=["*"])
    only = host.routes.add()
    only.match.prefix = ""
    only.route.cluster = name
    manager = pb.HttpConnectionManager(route_config=route)
    manager.http_filters.add(name="router").typed_config.type_url = f"{FILTERS}.http.router.v3.Router"
    found = pb.Listener(name=name)
    found.api_listener.api_listener.type_url = f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"
    found.api_listener.api_listener.value = manager.SerializeToString()
    return found


def cluster(name: str) -> Any:
    found = pb.Cluster(name=name, type=EDS)
    found.eds_cluster_config.service_name = name
    found.eds_cluster_config.eds_config.ads.SetInParent()
    return found


@asynccontextmanager
async def control_plane() -> AsyncIterator[ControlPlane]:
    plane = ControlPlane()
    server = grpc.aio.server()
    methods = {
        "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(
            plane.stream, pb.DiscoveryRequest.FromString, pb.DiscoveryResponse.SerializeToString
        )
    }
    server.add_registered_method_handlers(SERVICE, methods)
    plane.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield plane
    finally:
        await server.stop(None)
