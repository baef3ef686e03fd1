"""One request's trace through the three tiers, as a collector receives it over OTLP."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.collector import Collector, Received, running_collector, traces_counter
from tests.fakes.tokenizers_trained import write_folder
from tests.fakes.whole_stack import WholeStack, whole_stack
from tokenwire.telemetry.otlp import OtlpSink
from tokenwire.telemetry.tracing import Span, Tracer
from tokenwire.v1 import common_pb2, gateway_pb2, tokenizer_pb2

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
CLOCK_NS = 1_000_000
"""Each tier relates its monotonic clock to the time of day by itself."""
ROUNDING_NS = 2
NUM_SPANS = 14
"""Of a request with one output: 4 + 5 + 5, where every phase takes time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("traced") / "tiny-model")


@dataclass(frozen=True)
class Node:
    """A span and what is within it, in order of time."""

    span: Received
    within: list["Node"]

    def one(self, name: str) -> "Node":
        (found,) = [each for each in self.within if each.span.name == name]
        return found

    @property
    def names(self) -> list[str]:
        return [each.span.name for each in self.within]


def tree_of(spans: list[Received], root: str = "") -> list[Node]:
    """Those within `root`, a span's id."""
    within = sorted((span for span in spans if span.parent_id == root), key=lambda span: (span.begin_ns, span.end_ns))
    return [Node(span, tree_of(spans, span.span_id)) for span in within]


def assert_adds_up(node: Node) -> None:
    """What is within follows each other without a gap, from beginning to end."""
    spans = [each.span for each in node.within]
    assert abs(spans[0].begin_ns - node.span.begin_ns) <= ROUNDING_NS
    assert abs(spans[-1].end_ns - node.span.end_ns) <= ROUNDING_NS
    assert all(abs(a.end_ns - b.begin_ns) <= ROUNDING_NS for a, b in zip(spans, spans[1:], strict=False))
    assert abs(sum(span.took_ns for span in spans) - node.span.took_ns) <= ROUNDING_NS * (len(spans) + 1)


async def traced(
    folder: Path, ask: Callable[[WholeStack], Awaitable[None]], *, ratio: float = 1.0, **model: object
) -> Collector:
    """What a collector has received of what is asked, once all tiers have gone."""
    with running_collector() as collector:
        settings = {"trace_endpoint": collector.endpoint, "trace_ratio": ratio}
        edge = {**settings, "trace_callers": "all"}
        async with whole_stack(folder, gateway=edge, tokenizer=settings, **settings, **model) as stack:
            await ask(stack)
        return collector


def generate_request(
    text: str = "The quick brown fox", *, max_tokens: int = 8, **fields: object
) -> gateway_pb2.GenerateRequest:
    request = gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt(text=text)], **fields)
    request.options.stop.max_tokens = max_tokens
    return request


async def generate(stack: WholeStack, *metadata: tuple[str, str], **fields: object) -> None:
    stub = stack.gateway.stub
    async for _ in stub.Generate(generate_request(**fields), metadata=metadata):
        pass


def test_one_request_is_one_tree_whose_phases_add_up(folder: Path) -> None:
    async def ask(stack: WholeStack) -> None:
        await generate(stack, ("traceparent", TRACEPARENT))

    began_ns = time.time_ns()
    collector = asyncio.run(traced(folder, ask, mock_step_ms=5.0))
    assert {each["service.name"] for each in collector.resources} == {
        "tokenwire-gateway", "tokenwire-tokenizer", "tokenwire-model",
    }  # fmt: skip
    assert {span.trace_id for span in collector.spans} == {TRACE}
    (gateway,) = tree_of(collector.spans, CALLER)
    assert gateway.names == ["admit", "generate", "send"] and gateway.span.name == "gateway grpc.generate"
    (tokenizer,) = gateway.one("generate").within
    assert tokenizer.names == ["queue", "tokenize", "place", "generate"]
    (model,) = tokenizer.one("generate").within
    assert model.names == ["queue", "prefill", "decode", "send"]
    assert [node.span.service for node in (gateway, tokenizer, model)] == [
        "tokenwire-gateway", "tokenwire-tokenizer", "tokenwire-model",
    ]  # fmt: skip
    assert len(collector.spans) == NUM_SPANS
    for tier in (gateway, tokenizer, model):
        assert_adds_up(tier)
    for call, tier in ((gateway.one("generate"), tokenizer), (tokenizer.one("generate"), model)):
        assert call.span.begin_ns - CLOCK_NS <= tier.span.begin_ns
        assert tier.span.end_ns <= call.span.end_ns + CLOCK_NS
    assert began_ns <= gateway.span.begin_ns and gateway.span.end_ns <= time.time_ns()
    assert model.one("decode").span.took_ns >= 7 * 5_000_000, "seven more steps"
    assert model.span.attributes["gen_ai.usage.output_tokens"] == 8
    assert gateway.span.attributes["tokenwire.outcome"] == "ok" and not gateway.span.error
    # What no phase of the tiers' own covers is the way between them.
    phases = [
        *(gateway.one(name) for name in ("admit", "send")),
        *(tokenizer.one(name) for name in ("queue", "tokenize", "place")), *model.within,
    ]  # fmt: skip
    ways_ns = sum(
        call.span.took_ns - tier.span.took_ns
        for call, tier in ((gateway.one("generate"), tokenizer), (tokenizer.one("generate"), model))
    )
    total_ns = sum(phase.span.took_ns for phase in phases) + ways_ns
    assert abs(total_ns - gateway.span.took_ns) <= ROUNDING_NS * NUM_SPANS


def test_http_and_sessions_carry_the_context_and_requests_without_one_begin_a_trace(folder: Path) -> None:
    async def ask(stack: WholeStack) -> None:
        post = stack.gateway.http.post
        body = {"model": "tiny-model", "prompt": "hello", "max_tokens": 4}
        answer = await post("/v1/completions", json=body, headers={"traceparent": TRACEPARENT})
        assert answer.status_code == 200
        assert (await post("/v1/completions", json=body)).status_code == 200
        stub = stack.gateway.stub
        session = stub.Session()
        request = tokenizer_pb2.TextRequest(text="hello", context=common_pb2.RequestContext(traceparent=TRACEPARENT))
        request.options.stop.max_tokens = 4
        await session.write(tokenizer_pb2.SessionRequest(hello=common_pb2.Hello(protocol_version=1)))
        await session.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=1, request=request)]))
        await session.done_writing()
        async for _ in session:
            pass

    collector = asyncio.run(traced(folder, ask))
    mine = tree_of([span for span in collector.spans if span.trace_id == TRACE], CALLER)
    assert sorted(node.span.name for node in mine) == ["gateway grpc.session", "gateway http.completions"]
    (own,) = tree_of([span for span in collector.spans if span.trace_id != TRACE])
    for gateway in (*mine, own):
        (tokenizer,) = gateway.one("generate").within
        (model,) = tokenizer.one("generate").within
        assert "decode" in model.names


def test_what_is_not_sampled_at_the_edge_is_not_sampled_below(folder: Path) -> None:
    async def ask(stack: WholeStack) -> None:
        await generate(stack)
        await generate(stack, ("traceparent", TRACEPARENT[:-1] + "0"))
        await generate(stack, ("traceparent", TRACEPARENT))

    with running_collector() as collector:

        async def main() -> None:
            tier = {"trace_endpoint": collector.endpoint}
            edge = {**tier, "trace_ratio": 0.0, "trace_callers": "all"}
            async with whole_stack(folder, gateway=edge, tokenizer=tier, **tier) as stack:
                await ask(stack)

        asyncio.run(main())
        assert {span.trace_id for span in collector.spans} == {TRACE}
        assert len(tree_of(collector.spans, CALLER)) == 1, "the one whose caller had decided so"


def test_choices_prompts_and_errors(folder: Path) -> None:
    async def ask(stack: WholeStack) -> None:
        stub = stack.gateway.stub
        request = generate_request()
        request.prompts.add(text="another")
        request.options.num_choices = 2
        async for _ in stub.Generate(request):
            pass
        bad = generate_request(max_tokens=10**6)
        with pytest.raises(Exception, match="is not allowed"):
            async for _ in stub.Generate(bad):
                pass

    collector = asyncio.run(traced(folder, ask))
    good, bad = tree_of(collector.spans)
    tokenizers = good.one("generate").within
    assert [node.span.name for node in tokenizers] == ["tokenizer"] * 2
    assert [len(node.one("generate").within) for node in tokenizers] == [2, 2], "a sequence for each choice"
    for span in (bad.span, bad.one("generate").within[0].span):
        assert span.error == "CONTEXT_LENGTH_EXCEEDED: options.stop.max_tokens", "not what was written there"


def test_embeddings_are_in_the_tree(folder: Path) -> None:
    async def ask(stack: WholeStack) -> None:
        body = {"model": "tiny-model", "input": ["hello", "world"]}
        assert (await stack.gateway.http.post("/v1/embeddings", json=body)).status_code == 200

    (gateway,) = tree_of(asyncio.run(traced(folder, ask)).spans)
    (tokenizer,) = gateway.one("generate").within
    assert (tokenizer.span.name, [node.span.name for node in tokenizer.within]) == ("tokenizer embed", ["model"] * 2)
    for node in tokenizer.within:
        assert node.names == ["queue", "embed", "send"] and "tokenwire.finish_reason" not in node.span.attributes


def test_an_absent_collector_costs_no_request_and_no_more_than_seconds_at_the_end() -> None:
    tracer = Tracer(OtlpSink("http://127.0.0.1:1", "gateway", traces_counter()))
    context = tracer.begin("")
    tracer.end(lambda: [Span("lost", context, 0.0, 1.0, "server")])
    began_s = time.monotonic()
    tracer.close()
    assert time.monotonic() - began_s < 10
