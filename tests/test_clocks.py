"""Time: who reads the wall clock, which may jump, and how waits are limited."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("gateway", "tokenizer_svc", "model_svc", "tokenwire")
WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\b|\bdatetime\.(now|utcnow|today)\b|\bCLOCK_REALTIME\b")
ALLOWED = {
    "gateway/http/app.py": "since when a model is there",
    "gateway/http/openai_chunks.py": "when an answer was made",
    "gateway/identity/keyring.py": "keys and certificates end",
    "gateway/identity/tokens.py": "tokens end",
    "gateway/service.py": "tells this process from those before",
    "model_svc/vllm_engine/service.py": "when the last request came, which is asked",
    "tokenizer_svc/sessions.py": "tells this process from those before",
    "tokenizer_svc/template_sandbox.py": "chat templates may ask for the date",
    "tokenwire/cli/keys.py": "keys end",
    "tokenwire/development_ca.py": "certificates end",
    "tokenwire/telemetry/tracing.py": "when spans were",
}


def test_the_wall_clock_is_read_for_dates_alone() -> None:
    found = {
        str(path.relative_to(ROOT))
        for tier in TIERS
        for path in (ROOT / tier).rglob("*.py")
        if WALL_CLOCK.search(path.read_text())
    }
    assert found == set(ALLOWED)


def test_no_wait_loses_a_cancellation() -> None:
    """Before Python 3.12 `asyncio.wait_for` returns, when cancelled as what it waits for ends."""
    calls = re.compile(r"\bwait_for\(")
    assert not [path for tier in TIERS for path in (ROOT / tier).rglob("*.py") if calls.search(path.read_text())]
