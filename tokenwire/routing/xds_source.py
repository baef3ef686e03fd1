"""Addresses that a control plane gives: what gRPC's own xDS client has been told for a target `xds:///name`.

gRPC would balance calls among them by itself, and give a Session to one of them for as long as it lasts. So a channel
is held here for its resolution alone, and the endpoints that it was given are read back, which is what CSDS is for;
each is then a tier with Sessions of its own, as those found by name are. Requires the extra `xds`. Sends no requests.
"""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from envoy.admin.v3 import config_dump_shared_pb2 as status_pb2
from envoy.config.core.v3 import health_check_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from grpc_csds import ClientStatusDiscoveryServiceServicer

from tokenwire.addresses import join_host_port
from tokenwire.channels import aio_channel
from tokenwire.errors import FailedPrecondition
from tokenwire.tls import ClientTls

BOOTSTRAP = ("GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG")
"""Where gRPC reads which control plane there is: a file's path, or its content."""

ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
ABLE = (health_check_pb2.UNKNOWN, health_check_pb2.HEALTHY)

FIRST_ANSWER_S = 2.0
"""How long the first look waits for the control plane."""
LOOK_AGAIN_S = 0.02


class XdsSource:
    """The endpoints of one name. `read` as often as wanted, `close` once."""

    def __init__(self, name: str, tls: ClientTls | None) -> None:
        """`tls`: how the endpoints are called. Raises FailedPrecondition where gRPC is not told of a control plane."""
        if not any(os.environ.get(variable) for variable in BOOTSTRAP):
            raise FailedPrecondition(
                f"xds:///{name} needs a control plane: name gRPC's bootstrap file in {BOOTSTRAP[0]}",
                reason="NO_BOOTSTRAP",
            )
        self._name = name
        self._tls = tls
        self._channel: grpc.aio.Channel | None = None

    async def read(self) -> Sequence[str]:
        """The addresses now. Raises ValueError saying what the control plane did not tell."""
        first = self._channel is None
        if self._channel is None:
            self._channel = aio_channel(f"xds:///{self._name}", self._tls)
        self._channel.get_state(try_to_connect=True)  # one that has gone idle would hear nothing
        ends_s = time.monotonic() + (FIRST_ANSWER_S if first else 0.0)
        while True:
            try:
                return addresses_of(self._name, told(self._name))
            except ValueError:
                if time.monotonic() >= ends_s:
                    raise
            await asyncio.sleep(LOOK_AGAIN_S)

    async def close(self) -> None:
        """Hear no more."""
        if self._channel is not None:
            await self._channel.close()


def told(name: str) -> list[Any]:
    """What gRPC's client was told for `xds:///name`, as CSDS has it: one entry for each resource."""
    response = ClientStatusDiscoveryServiceServicer.FetchClientStatus(None, None)
    return [
        each
        for config in response.config
        if config.client_scope == f"xds:/{name}"
        for each in config.generic_xds_configs
    ]


def addresses_of(name: str, resources: Iterable[Any]) -> list[str]:
    """`host:port` of every endpoint that may be called, of the first priority that has any. Raises ValueError."""
    found: list[str] = []
    answered = False
    for resource in resources:
        if resource.client_status == status_pb2.DOES_NOT_EXIST:
            raise ValueError(f"the control plane knows no {kind_of(resource.type_url)} {resource.name!r}")
        if resource.client_status == status_pb2.NACKED and not resource.xds_config.value:
            raise ValueError(f"what it gave cannot be used: {resource.error_state.details}")
        if resource.type_url == ENDPOINTS and resource.xds_config.value:
            answered = True
            found += endpoints_of(endpoint_pb2.ClusterLoadAssignment.FromString(resource.xds_config.value))
    if not answered:
        raise ValueError(f"the control plane has not told endpoints (EDS) of {name!r}")
    return list(dict.fromkeys(found))


def endpoints_of(assignment: Any) -> list[str]:
    """Of one cluster. What the control plane calls unhealthy or draining is left out, as gRPC leaves it out."""
    by_priority: defaultdict[int, list[str]] = defaultdict(list)
    for locality in assignment.endpoints:
        for endpoint in locality.lb_endpoints:
            address = endpoint.endpoint.address.socket_address
            if endpoint.health_status in ABLE:
                by_priority[locality.priority].append(join_host_port(address.address, address.port_value))
    return by_priority[min(by_priority)] if by_priority else []


def kind_of(type_url: str) -> str:
    """`Listener` and so on."""
    return type_url.rpartition(".")[2]
