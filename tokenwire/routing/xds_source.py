"""Addresses that a control plane gives: what gRPC's own xDS client has been told for a target `xds:///name`.

gRPC would balance calls among them by itself, and give a Session to one of them for as long as it lasts. So a channel
is held here for its resolution alone, and the endpoints that it was given are read back, which is what CSDS is for;
each is then a tier with Sessions of its own, as those found by name are. Sends no requests.
"""

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

import grpc
from grpc._cython import cygrpc

from tokenwire.addresses import join_host_port
from tokenwire.channels import aio_channel
from tokenwire.errors import FailedPrecondition
from tokenwire.tls import ClientTls
from tokenwire.xds.v1 import client_status_pb2 as pb

BOOTSTRAP = ("GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG")
"""Where gRPC reads which control plane there is: a file's path, or its content."""

ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
ABLE = (pb.HEALTH_STATUS_UNSPECIFIED, pb.HEALTH_STATUS_HEALTHY)

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


def told(name: str) -> list[pb.Resource]:
    """What gRPC's client was told for `xds:///name`, one entry for each resource.

    gRPC gives it to Python serialized; the package grpcio-csds, which serves CSDS, calls the same function. It is not
    used here, since the stubs it needs put an old `opentelemetry` and `google.rpc` over those of other packages.
    """
    status = pb.ClientStatus.FromString(cygrpc.dump_xds_configs())
    return [each for config in status.configs if config.client_scope == f"xds:/{name}" for each in config.resources]


def addresses_of(name: str, resources: Iterable[pb.Resource]) -> list[str]:
    """`host:port` of every endpoint that may be called, of the first priority that has any. Raises ValueError."""
    found: list[str] = []
    answered = False
    for resource in resources:
        if resource.status == pb.RESOURCE_STATUS_DOES_NOT_EXIST:
            raise ValueError(f"the control plane knows no {kind_of(resource.type_url)} {resource.name!r}")
        if resource.status == pb.RESOURCE_STATUS_NACKED and not resource.config.value:
            raise ValueError(f"what it gave cannot be used: {resource.failure.details}")
        if resource.type_url == ENDPOINTS and resource.config.value:
            answered = True
            found += endpoints_of(pb.Endpoints.FromString(resource.config.value))
    if not answered:
        raise ValueError(f"the control plane has not told endpoints (EDS) of {name!r}")
    return list(dict.fromkeys(found))


def endpoints_of(endpoints: pb.Endpoints) -> list[str]:
    """Of one cluster. What the control plane calls unhealthy or draining is left out, as gRPC leaves it out."""
    by_priority: defaultdict[int, list[str]] = defaultdict(list)
    for locality in endpoints.localities:
        for endpoint in locality.endpoints:
            address = endpoint.host.address.socket_address
            if endpoint.health_status in ABLE:
                by_priority[locality.priority].append(join_host_port(address.address, address.port))
    return by_priority[min(by_priority)] if by_priority else []


def kind_of(type_url: str) -> str:
    """`Listener` and so on."""
    return type_url.rpartition(".")[2]
