from collections.abc import Iterator

import pytest

from tests.fakes.gateway import FakeGateway, running_gateway
from tokenwire.client import Client


@pytest.fixture(scope="module")
def gateway() -> Iterator[FakeGateway]:
    with running_gateway() as fake:
        yield fake


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    gateway.requests.clear()
    gateway.metadata_timeouts.clear()
    gateway.cancelled.clear()
    with Client(gateway.target) as client:
        yield client
