import asyncio
import logging
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from gateway.metric_labels import APIS, COMPUTING, GENERATING, HTTP_REFUSALS, IDENTITY_REFUSALS, LIMITS
from gateway.metrics import GatewayMetrics, RequestRecord
from tests.deploy.alerts import RULES
from tests.reasons import reasons_given
from tokenwire.errors import DeadlineExceeded, Overloaded, Unauthenticated
from tokenwire.logs import FIELDS
from tokenwire.requests import FinishReason, Terminal, Usage

GATEWAY = Path(__file__).parents[2] / "gateway"


def test_what_the_rules_ask_for_begins_at_0_so_that_a_first_failure_is_a_rise() -> None:
    registry = CollectorRegistry()
    GatewayMetrics(registry)
    asked = [each.split("|") for rule in RULES for each in re.findall(r'outcome=~?"(.*?)"', rule["expr"])]
    outcomes = {"ok", *(outcome for each in asked for outcome in each)}
    assert len(outcomes) > 5
    for api in APIS:
        for outcome in outcomes:
            labels = {"api": api, "outcome": outcome}
            assert registry.get_sample_value("tokenwire_gateway_requests_total", labels) == 0, labels
    for name, apis in (("first_text_seconds", GENERATING), ("unbegun_seconds", COMPUTING)):
        for api in apis:
            assert registry.get_sample_value(f"tokenwire_gateway_{name}_count", {"api": api}) == 0
    for name, label, values in (
        ("http_refusals", "reason", HTTP_REFUSALS), ("identity_refusals", "reason", IDENTITY_REFUSALS),
        ("limited", "limit", LIMITS), ("outputs", "reason", [reason.value for reason in FinishReason]),
    ):  # fmt: skip
        for value in values:
            assert registry.get_sample_value(f"tokenwire_gateway_{name}_total", {label: value}) == 0


def test_the_apis_are_those_that_requests_are_recorded_for() -> None:
    source = "\n".join(path.read_text() for path in GATEWAY.rglob("*.py"))
    recorded = re.findall(r'\brecord\("([\w.]+)"\)|HttpCall\(\w+, \w+, "([\w.]+)"\)', source)
    passed_on = re.findall(r'_pass_(?:on|stream)\("(\w+)"', source)
    assert {a or b for a, b in recorded} | {f"grpc.{method.lower()}" for method in passed_on} == set(APIS)
    assert len(APIS) == len(set(APIS))


def test_the_reasons_of_refusals_are_those_that_are_given() -> None:
    listener = [GATEWAY / "http" / f"{name}.py" for name in ("guard", "heads", "hosts")]
    assert {reason.lower() for reason in reasons_given(listener)} == set(HTTP_REFUSALS)
    identity = [GATEWAY / "identity" / f"{name}.py" for name in ("identifier", "keyring", "tokens")]
    assert {reason.lower() for reason in reasons_given(identity, (Unauthenticated,))} == set(IDENTITY_REFUSALS)
    limiter = (GATEWAY / "limits" / "limiter.py").read_text()
    assert set(re.findall(r'self\._refusal\("(\w+)"', limiter)) == set(LIMITS)


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
        if sample.name == "tokenwire_gateway_unbegun_seconds_count" and sample.value
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
