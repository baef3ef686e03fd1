"""What tiers are to blame for is counted from 0: the reasons are those that they give."""

import pytest
from prometheus_client import CollectorRegistry

from model_svc.metrics import EngineMetrics
from tests.reasons import ROOT, reasons_given
from tokenizer_svc.metrics import TokenizerMetrics
from tokenwire.errors import DeadlineExceeded, Internal, Overloaded, Unavailable
from tokenwire.failures import MODEL_FAILURES, TOKENIZER_FAILURES

OWN = (Internal, Unavailable, Overloaded, DeadlineExceeded)
NOT_OF_REQUESTS = {"TOO_MANY_SUBSCRIBERS", "TOO_MANY_SEQUENCES"}
"""Of other calls, which the metrics do not count."""


@pytest.mark.parametrize(
    ("packages", "failures"),
    [(("model_svc",), MODEL_FAILURES), (("model_svc", "tokenizer_svc"), (*TOKENIZER_FAILURES,))],
    ids=["model", "tokenizer"],
)
def test_the_reasons_are_those_that_are_given(packages: tuple[str, ...], failures: tuple[str, ...]) -> None:
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert reasons_given(paths, OWN) - NOT_OF_REQUESTS == set(failures)
    assert len(failures) == len(set(failures))


def test_each_is_counted_from_0() -> None:
    registry = CollectorRegistry()
    TokenizerMetrics(registry)
    EngineMetrics(registry)
    for tier, failures in (("tokenizer", TOKENIZER_FAILURES), ("model", MODEL_FAILURES)):
        for reason in failures:
            assert registry.get_sample_value(f"tokenwire_{tier}_errors_total", {"reason": reason}) == 0
    assert registry.get_sample_value("tokenwire_model_refused_total", {"reason": "QUEUE_FULL"}) == 0
