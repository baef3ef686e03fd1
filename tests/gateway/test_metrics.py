import asyncio
import logging

import pytest
from prometheus_client import CollectorRegistry

from gateway.metrics import GatewayMetrics, RequestRecord
from tokenwire.errors import DeadlineExceeded, Overloaded
from tokenwire.logs import FIELDS
from tokenwire.requests import FinishReason, Terminal, Usage


def test_outputs_prompt_tokens_and_the_time_between_tokens_are_counted() -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    value = registry.get_sample_value
    with RequestRecord(metrics, "test") as record:
        record.saw_text()
        record.ended(Terminal(FinishReason.LENGTH, Usage(prompt_tokens=5, completion_tokens=11)))
    gap_s = value("tokenwire_gateway_token_gap_seconds_sum", {"api": "test"})
    assert gap_s is not None and 0 < gap_s < 1
    with RequestRecord(metrics, "test") as record:  # of several outputs no single gap can be told
        record.saw_text()
        for choice in (FinishReason.LENGTH, FinishReason.STOP_STRING):
            record.ended(Terminal(choice, Usage(prompt_tokens=7, completion_tokens=2)))
    with RequestRecord(metrics, "test") as record:  # nor of one token
        record.saw_text()
        record.ended(Terminal(FinishReason.LENGTH, Usage(prompt_tokens=1, completion_tokens=1)))
    assert value("tokenwire_gateway_token_gap_seconds_count", {"api": "test"}) == 1
    assert value("tokenwire_gateway_prompt_tokens_total") == 13
    assert value("tokenwire_gateway_outputs_total", {"reason": "length"}) == 3
    assert value("tokenwire_gateway_outputs_total", {"reason": "stop_string"}) == 1


def test_requests_that_are_given_up_before_their_first_text_are_told_from_those_that_begin() -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    out_of_time = Terminal(FinishReason.DEADLINE, Usage(prompt_tokens=3))
    failed = Terminal(FinishReason.ERROR, Usage(prompt_tokens=3), error=Overloaded("full"))
    for api, terminal, begins in (
        ("limit", out_of_time, False), ("begun", out_of_time, True), ("full", failed, False),
        ("ok", Terminal(FinishReason.STOP_TOKEN, Usage(prompt_tokens=3)), False),
    ):  # fmt: skip
        with RequestRecord(metrics, api) as record:
            if begins:
                record.saw_text()
            record.ended(terminal)
    for api, error in (("deadline", DeadlineExceeded("too late")), ("gone", asyncio.CancelledError())):
        with pytest.raises(type(error)), RequestRecord(metrics, api):
            raise error
    counted = {
        sample.labels["api"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "tokenwire_gateway_unbegun_seconds_count"
    }
    assert counted == {"limit": 1, "deadline": 1, "gone": 1}


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
