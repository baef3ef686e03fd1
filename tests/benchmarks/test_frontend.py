"""The frontend benchmark: how its client counts, its arithmetic, and its page."""

import asyncio
import json
from typing import Any

import pytest

from benchmarks import frontend
from benchmarks.contenders.process import ServerProcess
from benchmarks.contenders.running import Running
from benchmarks.frontend_suite import turns
from benchmarks.frontend_suite.summary import bars, by_load
from benchmarks.frontend_suite.turns import DIRECT, OURS, OURS_SESSION, PEER, STACK, Pace, takers_of
from benchmarks.loadgen.figures import slowest_to_median
from benchmarks.loadgen.grpc_messages import shares_of_first_text
from benchmarks.loadgen.http_chat import ChatClient, CountedEvents
from benchmarks.loadgen.measure import Load, Target
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Work
from tokenwire.v1 import common_pb2


def event(content: str | None = None, **fields: Any) -> bytes:
    choices = [] if content is None else [{"index": 0, "delta": {"content": content}}]
    return b"data: " + json.dumps({"choices": choices, **fields}, separators=(",", ":")).encode() + b"\n\n"


ANSWER = b"".join(
    [
        event(""),
        event("one"),
        event(' "two"'),
        event("\n\ndata: [DONE]\n\n"),
        event("x" * 300),
        event(None, usage={"prompt_tokens": 9, "completion_tokens": 4}),
        b"data: [DONE]\n\n",
    ]
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 333, 10_000])
def test_events_are_counted_wherever_their_bytes_are_split(size: int) -> None:
    events = CountedEvents(Record(0, 0.0))
    for begin in range(0, len(ANSWER), size):
        events.on_body(ANSWER[begin : begin + size])
    assert len(events.record.pieces_s) == 4 and not events.record.error
    assert events.usage == {"prompt_tokens": 9, "completion_tokens": 4}
    assert events.record.ended_s >= events.record.pieces_s[-1] > 0


def test_an_error_in_the_stream_is_the_record_s() -> None:
    events = CountedEvents(Record(0, 0.0))
    events.on_body(event("one") + b'data: {"error":{"message":"it broke"}}\n\n')
    assert "it broke" in events.record.error


async def serve_chat(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, extra: list[int], closed: asyncio.Event
) -> None:
    """Answers 4 tokens; a prompt counts 5 tokens and the next number of `extra`."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
            usage = {"prompt_tokens": 5 + extra.pop(0), "completion_tokens": 4}
            body = event("a") * 4 + event(None, usage=usage) + b"data: [DONE]\n\n"
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
        closed.set()


def test_the_template_s_tokens_are_taken_off_and_must_stay_the_same() -> None:
    async def main() -> None:
        extra = [30, 30, 31]
        closed = asyncio.Event()
        server = await asyncio.start_server(lambda r, w: serve_chat(r, w, extra, closed), "127.0.0.1", 0)
        work = Work(prompt_tokens=5, output_tokens=4)
        client = ChatClient(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", "m", work)
        records = [Record(number, 0.0) for number in range(3)]
        for record in records:
            await client.ask("some words", record)
            record.judge(work)
        await client.close()
        await closed.wait()
        server.close()
        await server.wait_closed()
        assert [record.error == "" for record in records] == [True, True, False]
        assert "6 prompt tokens" in records[2].error

    asyncio.run(main())


def test_a_terminal_event_s_timings_are_split_by_tier() -> None:
    timings = common_pb2.Timings()
    assert shares_of_first_text(timings) == {}
    timings.model.queue_us, timings.model.prefill_us = 1_000, 4_000
    timings.tokenizer.queue_us, timings.tokenizer.tokenize_us, timings.tokenizer.first_frame_us = 100, 400, 5_500
    timings.gateway.first_text_us = 6_700
    shares = shares_of_first_text(timings)
    assert shares == pytest.approx({"gateway": 0.0007, "tokenizer": 0.001, "model": 0.005})


def test_the_slowest_against_the_median() -> None:
    assert slowest_to_median([]) is None
    assert slowest_to_median([1.0, 1.0, 1.0, 3.0]) == 3.0


def run_of(concurrency: int, cpu_s: float, tiers: tuple[str, ...], **fields: Any) -> dict[str, Any]:
    """A run of 100 requests of 10 tokens; every tier took `cpu_s`."""
    tier = {"cpu_s": cpu_s, "cpu_s_per_1000_tokens": cpu_s, "peak_rss_bytes": 1_000_000 * concurrency}
    given = {
        "load": f"c={concurrency}", "concurrency": concurrency, "output_tokens_per_s": 500.0, "requests_per_s": 50.0,
        "output_tokens": 1000, "requests": 100, "failures": 0, "failure_reasons": {}, "warnings": [], "pieces": 990,
        "tiers": {name: tier for name in tiers}, "client": {"cpu_s_per_1000_tokens": 0.01, "share_of_a_core": 0.1},
        "ttft_ms": {"p50": 3.0, "p99": 5.0}, "others_share": 0.0, "slowest_to_median": 1.1, "first_text_ms": {},
    }  # fmt: skip
    return given | fields


def test_figures_and_bars() -> None:
    tiers = ("gateway", "tokenizer", "worker")
    ours = by_load([[run_of(1, 0.01, tiers), run_of(128, 0.01, tiers)]] * 3)
    assert ours[128]["edge_cpu_s_per_million_tokens"] == 20.0, "two tiers of 10 each; the model's is told apart"
    assert ours[128]["cpu_s_per_million_tokens"] == {"gateway": 10.0, "tokenizer": 10.0, "worker": 10.0}
    assert ours[128]["edge_cpu_s_per_1000_requests"] == 0.2
    assert ours[128]["events_per_token"] == 0.99
    peer = by_load([[run_of(128, 0.025, ("smg", "worker"), output_tokens_per_s=1000.0)]])
    session = by_load([[run_of(128, 0.006, tiers)]])
    direct = by_load([[run_of(1, 0.01, ("worker",), ttft_ms={"p50": 1.5, "p99": 2.0})]])
    figures = {OURS: ours, PEER: peer, OURS_SESSION: session, DIRECT: direct}
    found = {each["what"]: (each["value"], each["holds"]) for each in bars(figures, figures)}
    assert found["paced, c=128: CPU-s per million tokens against smg's"] == (0.8, True)
    assert found["paced, c=1000: CPU-s per million tokens against smg's"] == (None, None)
    assert found["unpaced, c=128: tokens/s against smg's"] == (0.5, False)
    assert found["paced, c=128: Session's CPU-s per million tokens against HTTP's"] == (0.6, False)
    assert found["c=1: median ms that gateway and tokenizer_svc add to the first token"] == (1.5, True)


class Stopped(ServerProcess):
    """A process that was never there."""

    def __init__(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


def test_a_run_with_a_missing_peer_says_so_and_stops_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Stopped()

    def start(spec: Any, say: Any) -> Running:
        if spec.kind == "smg":
            raise turns.Absent("not installed")
        last = "worker" if spec.kind == "ours-edge" else "model"
        target = Target("http", "127.0.0.1:1", "m", tiers={"gateway": 1, "tokenizer": 2, last: 3})
        running = Running(spec.label, target, process, {"tokenwire": "0"}, {"engine": "mock"})
        running.addresses = {api: "127.0.0.1:1" for api in ("chat", "session", "tokens")}
        return running

    def run(target: Target, work: Work, loads: Any, *, seed: int, say: str) -> list[dict[str, Any]]:
        assert work.form == ("ids" if target.api == "tokens" else "text")
        return [run_of(load.concurrency, 0.01, tuple(target.tiers)) for load in loads]

    monkeypatch.setattr(turns.kinds, "start", start)
    monkeypatch.setattr(turns, "run", run)
    record = frontend.measure([1, 128], 2, short=True)
    assert process.stopped
    for pace in record["paces"]:
        assert pace["absent"] == {PEER: "not installed"}
        assert set(pace["figures"]) == {OURS, OURS_SESSION, DIRECT, STACK} and set(pace["figures"][DIRECT]) == {1}
    text = frontend.text_of(record)
    assert "smg http was not measured: not installed" in text and "not measured" in text


def test_takers_and_loads() -> None:
    peer = Running("smg", Target("chat", "a:1", "m", tiers={"smg": 1, "worker": 2}), None, {}, {})
    assert [taker.name for taker in takers_of(peer)] == [PEER]
    paced, unpaced = frontend.paces([1, 1000], short=False)
    assert paced == Pace(20.0, (Load(1, num_requests=6), Load(1000, num_requests=3000)))
    assert unpaced.label == "unpaced" and unpaced.loads[1].requests == 3000
