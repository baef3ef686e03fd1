import logging

from prometheus_client import CollectorRegistry

from gateway.metrics import GatewayMetrics, RequestRecord
from tokenwire.errors import Overloaded
from tokenwire.logs import FIELDS
from tokenwire.requests import FinishReason, Terminal, Usage


def test_the_log_line_counts_a_prompt_once_and_refused_work_not_at_all(caplog) -> None:
    caplog.set_level(logging.INFO, "gateway.metrics")
    metrics = GatewayMetrics(CollectorRegistry())
    refused = Terminal(FinishReason.ERROR, Usage(prompt_tokens=100), error=Overloaded("full"))
    with RequestRecord(metrics, "test") as record:
        for _ in range(3):
            record.ended(Terminal(FinishReason.LENGTH, Usage(prompt_tokens=5, completion_tokens=2)), prompt=0)
            record.ended(refused, prompt=1)
    (line,) = caplog.records
    found = getattr(line, FIELDS)
    assert (found["prompt_tokens"], found["completion_tokens"]) == (5, 6)
