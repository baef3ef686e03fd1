"""schemathesis over our own description of the HTTP API, against the real tiers with the mock engine: no 5xx, no answer
that is not described. gRPC's unary calls in Connect's form among it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Stack, running_stack

pytestmark = [pytest.mark.model, pytest.mark.extended]

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "unsupported_method",
)  # fmt: skip
CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""
"""A request may ask for less time than there is: 504 says that it has run out."""
FUZZING_S = 50
TIME_LIMIT_S = 120


@pytest.fixture(scope="module")
def mock_stack(model_folder: Path) -> Iterator[Stack]:
    """Contexts end soon, for requests that say nothing of how long their answers are."""
    with running_stack(
        "--engine", "mock", TOKENWIRE_MODEL_MOCK_STEP_MS="1", TOKENWIRE_MODEL_MOCK_MAX_CONTEXT_TOKENS="256"
    ) as stack:
        yield stack


def test_no_request_makes_a_server_error_and_every_answer_is_described(mock_stack: Stack, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    program = Path(sys.executable).with_name("schemathesis")
    command = [
        program, "--config-file", config, "run", f"{mock_stack.http_url}/openapi.json", "--checks", ",".join(CHECKS),
        "--phases", "coverage,fuzzing", "--max-time", str(FUZZING_S), "--max-examples", "60", "--no-shrink",
        "--no-color", "--generation-database", "none", "--warnings", "off", "--request-timeout", "30",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "17 selected / 17 total" in run.stdout
