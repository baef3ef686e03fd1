"""Spans as OTLP's messages."""

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from prometheus_client import Counter

from tests.fakes.collector import running_collector, traces_counter
from tokenwire.telemetry.otlp import MAX_EXPORT_BYTES, Ended, OtlpSink, _Exporter, add_message
from tokenwire.telemetry.tracing import Span, TraceContext


def counts(counter: Counter) -> dict[str, float]:
    (metric,) = counter.collect()
    return {each.labels["outcome"]: each.value for each in metric.samples if each.value}


def test_a_span_as_a_message() -> None:
    messages = ScopeSpans().spans
    attributes = {"text": "a", "whole": 3, "part": 0.5, "so": True}
    span = Span("name", TraceContext(2**127 + 1, 2**63 + 1, 7), 1.5, 2.25, "server", attributes, "it broke")
    add_message(messages, span, 10**18)
    (message,) = messages
    assert (message.name, message.kind) == ("name", SpanMessage.SPAN_KIND_SERVER)
    assert message.trace_id.hex() == "80000000000000000000000000000001"
    assert (message.span_id.hex(), message.parent_span_id.hex()) == ("8000000000000001", "0000000000000007")
    begin_ns, end_ns = message.start_time_unix_nano, message.end_time_unix_nano
    assert (begin_ns, end_ns) == (10**18 + 1_500_000_000, 10**18 + 2_250_000_000)
    assert (message.status.code, message.status.message) == (2, "it broke")
    values = {each.key: each.value for each in message.attributes}
    assert {key: value.WhichOneof("value") for key, value in values.items()} == {
        "text": "string_value", "whole": "int_value", "part": "double_value", "so": "bool_value",
    }  # fmt: skip
    assert (values["text"].string_value, values["whole"].int_value) == ("a", 3)
    assert values["part"].double_value == 0.5 and values["so"].bool_value
    assert message.flags == 0x301, "sampled; its parent is another process's"


def test_a_first_span_has_no_parent_and_one_without_error_no_status() -> None:
    messages = ScopeSpans().spans
    add_message(messages, Span("name", TraceContext(1, 2), 0.0, 1.0), 0)
    assert messages[0].parent_span_id == b"" and not messages[0].HasField("status")
    assert messages[0].kind == SpanMessage.SPAN_KIND_INTERNAL and messages[0].flags == 0x101


def big_spans(num: int) -> list[Span]:
    attributes = {f"a{index}": "x" * 1000 for index in range(40)}
    return [Span(f"s{index}", TraceContext(1, index + 2), 0.0, 1.0, "server", attributes) for index in range(num)]


def test_a_batch_goes_in_messages_that_a_collector_takes() -> None:
    exporter = _Exporter("http://127.0.0.1:1", {"service.name": "x"}, traces_counter())
    batch = [Ended(lambda: big_spans(100), 0), Ended(lambda: big_spans(20), 0)]
    requests, begun = zip(*exporter.requests_of(batch), strict=True)
    exporter.shutdown()
    assert begun == (1, 1, 0)
    assert len(requests) == 3 and max(each.ByteSize() for each in requests) < MAX_EXPORT_BYTES + 64 * 1024
    spans = [[span.name for span in each.resource_spans[0].scope_spans[0].spans] for each in requests]
    assert sum(map(len, spans)) == 120 and all(spans)
    assert all(each.resource_spans[0].resource.attributes for each in requests)


def test_a_large_batch_reaches_a_collector_with_what_is_behind_it() -> None:
    counter = traces_counter()
    with running_collector() as collector:
        sink = OtlpSink(collector.endpoint, "gateway", counter)
        sink.take(lambda: big_spans(150), 0)
        sink.take(lambda: [Span("anothers", TraceContext(9, 9), 0.0, 1.0)], 0)
        sink.close()
        names = [span.name for span in collector.spans]
    assert len(names) == 151 and "anothers" in names, "6 MB in all, and 4 MiB are taken at once"
    assert counts(counter) == {"sent": 2}


def test_what_no_collector_takes_and_what_makes_way_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "3")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")  # seconds: it is not tried again
    counter = traces_counter()
    sink = OtlpSink("http://127.0.0.1:1", "gateway", counter)
    with sink._processor._batch_processor._export_lock:  # nothing is sent meanwhile
        for index in range(5):
            sink.take(lambda index=index: [Span(f"s{index}", TraceContext(1, 2), 0.0, 1.0)], 0)  # type: ignore[misc]
    sink.close()
    assert counts(counter) == {"failed": 3, "dropped": 2}
