"""Pages in Chromium that use the gateway's HTTP port from another origin: one that is named, and a stranger."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Stack, running_stack
from tests.interop.contract import contract
from tests.interop.environments import node_with, not_to_be_had
from tests.interop.leavers import until_idle
from tokenwire.addresses import free_ports
from tokenwire.v1 import common_pb2

__all__ = ["contract"]

pytestmark = [pytest.mark.model, pytest.mark.extended]

PROGRAM = Path(__file__).parent / "programs" / "browser.cjs"
PACKAGES = (
    "@bufbuild/protobuf@2.17.0", "@connectrpc/connect@2.3.0", "@connectrpc/connect-web@2.3.0",
    "@sparticuz/chromium@147.0.0", "esbuild@0.28.2", "grpc-web@2.1.1", "puppeteer-core@24.43.1",
)  # fmt: skip
TIME_LIMIT_S = 240
NO_BROWSER = 3


@pytest.fixture(scope="module")
def origin_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def mock_stack(model_folder: Path, origin_port: int) -> Iterator[Stack]:
    """Lets in pages of one origin."""
    settings = {
        "TOKENWIRE_GATEWAY_CORS_ORIGINS": f"http://localhost:{origin_port}", "TOKENWIRE_MODEL_MOCK_STEP_MS": "20",
    }  # fmt: skip
    with running_stack("--engine", "mock", **settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def told(mock_stack: Stack, origin_port: int, contract: Path) -> dict[str, Any]:
    node, folder = node_with("browser", *PACKAGES)
    command = [node, PROGRAM, folder, mock_stack.http_url, contract, str(origin_port)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S)
    if run.returncode == NO_BROWSER:
        not_to_be_had(f"Chromium does not start here: {run.stderr.strip()[-300:]}")
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("transport", ["connect", "connectBinary", "grpcWeb"])
def test_a_page_of_the_named_origin(transport: str, told: dict[str, Any]) -> None:
    """Each message is there as it comes: the mock engine makes a token every 20 ms."""
    found = told["allowed"][transport]
    assert found["requestId"] and found["pieces"] > 3 and found["tokens"] == 8 and len(found["models"]) == 1
    assert found["bad"] == [{"code": "InvalidArgument", "field": field} for field in ("texts", "prompts")]
    assert found["left"]["code"] == "Canceled"
    assert (found["seen"], found["late"]) == (3 + common_pb2.FINISH_REASON_DEADLINE, None)


def test_googles_client_reads_a_stream_as_it_comes_and_leaves_it(told: dict[str, Any]) -> None:
    found = told["allowed"]["googles"]
    assert found["seen"] == 3
    code, message = found["message"]
    assert code == 3 and message.startswith("prompts")


def test_openais_form_over_fetch(told: dict[str, Any]) -> None:
    assert told["allowed"]["fetch"] == {"text": "data: [DONE]\n\n", "requestId": True}


def test_a_stranger_gets_nothing(told: dict[str, Any]) -> None:
    found = told["stranger"]
    assert found["connect"]["code"] == "Unknown" and found["fetch"] == found["simple"] == "TypeError"


def test_pages_that_left_are_cancelled_in_the_engine(told: dict[str, Any], mock_stack: Stack) -> None:
    assert told
    until_idle(mock_stack)
