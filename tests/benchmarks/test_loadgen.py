"""The load generator's arithmetic, and what it makes of servers that answer rightly and wrongly."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks import load
from benchmarks.loadgen.arrivals import poisson
from benchmarks.loadgen.failures import in_one_line
from benchmarks.loadgen.figures import figures, percentile, spread_ms
from benchmarks.loadgen.measure import Load, Target, run, warnings_of
from benchmarks.loadgen.processes import TierMeter
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Prompts, Work
from tests.fakes.completions_server import CompletionsServer, running_completions
from tokenwire.addresses import free_ports

WORK = Work(prompt_tokens=5, output_tokens=4, vocab_size=200, timeout_s=20)
ROOT = Path(load.__file__).parent.parent


def test_percentiles_are_nearest_rank() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, share) for share in (0.01, 0.2, 0.5, 0.9, 0.99)] == [1, 1, 3, 5, 5]
    hundred = [float(n) for n in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.5, 0.9, 0.99)] == [50, 90, 99]
    assert percentile([7.0], 0.5) == 7
    with pytest.raises(ValueError):
        percentile([], 0.5)
    assert spread_ms([]) is None
    assert spread_ms([0.001, 0.003]) == {"p50": 1.0, "p90": 3.0, "p99": 3.0, "mean": 2.0}


def test_arrivals_are_poisson_and_repeat() -> None:
    times = list(poisson(50.0, 20_000, seed=1))
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.03)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.05)  # as of an exponential distribution, and of no even one
    assert times == list(poisson(50.0, 20_000, seed=1)) != list(poisson(50.0, 20_000, seed=2))
    with pytest.raises(ValueError):
        list(poisson(0.0, 1, seed=0))


def test_prompts_are_of_the_length_and_never_alike() -> None:
    prompts = Prompts(WORK)
    made = [tuple(prompts.ids(number)) for number in range(200)]
    assert {len(ids) for ids in made} == {5} and len(set(made)) == 200
    assert all(100 <= token < 200 for ids in made for token in ids)
    assert made[7] == tuple(Prompts(WORK).ids(7))
    for bad in (Work(prompt_tokens=0), Work(output_tokens=0), Work(vocab_size=50), Work(form="text")):
        with pytest.raises(ValueError):
            Prompts(bad)


def record_of(**fields: Any) -> Record:
    given: dict[str, Any] = {
        "sent_s": 1.0, "pieces_s": [2.0, 2.5, 3.5], "ended_s": 4.0, "prompt_tokens": 5, "completion_tokens": 4
    }  # fmt: skip
    return Record(0, 0.5, **(given | fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ""),
        ({"streamed_tokens": 4}, ""),
        ({"streamed_tokens": 3}, "3 tokens were streamed"),
        ({"completion_tokens": 3}, "3 output tokens"),
        ({"completion_tokens": None}, "no usage"),
        ({"prompt_tokens": 6}, "6 prompt tokens"),
        ({"pieces_s": []}, "nothing was streamed"),
        ({"error": "cut"}, "cut"),
    ],
)
def test_only_answers_of_the_right_size_count(fields: dict[str, Any], said: str) -> None:
    record = record_of(**fields)
    record.judge(WORK)
    assert (said in record.error) if said else not record.error
    found = figures([record], 4)
    assert (found["failures"], found["output_tokens"]) == ((1, 0) if said else (0, 4))


def test_figures_of_two_answers_and_a_failure() -> None:
    late = record_of(sent_s=2.0, pieces_s=[5.0, 6.0], ended_s=6.0)
    found = figures([record_of(), late, record_of(error="cut", ended_s=99.0)], 4)
    assert found["requests"] == 3 and found["failure_reasons"] == {"cut": 1}
    assert found["wall_s"] == 5.0 and found["output_tokens_per_s"] == pytest.approx(8 / 5)
    assert found["ttft_ms"]["p50"] == 1500 and found["ttft_ms"]["p99"] == 4500  # from when they were due
    assert found["e2e_ms"]["p99"] == 5500 and found["inter_token_ms"]["p50"] == 1000
    assert found["time_per_output_token_ms"]["p99"] == pytest.approx(2000 / 3, abs=0.001)
    assert found["client_late_ms"]["p99"] == 1500
    nothing = figures([record_of(error="cut")], 4)
    assert nothing["ttft_ms"] is None and nothing["output_tokens_per_s"] == 0


def measure(server: CompletionsServer, *loads: Load) -> list[dict[str, Any]]:
    return run(Target("http", server.target, "m"), WORK, loads)


def test_a_closed_and_an_open_loop() -> None:
    with running_completions() as server:
        closed, opened = measure(server, Load(concurrency=3, num_requests=9), Load(rate=200, num_requests=20))
    assert closed["failures"] == opened["failures"] == 0
    assert closed["output_tokens"] == 36 and closed["pieces"] == 36 and opened["output_tokens"] == 80
    assert closed["ttft_ms"]["p50"] > 0 and opened["e2e_ms"]["p99"] >= opened["e2e_ms"]["p50"] > 0
    prompts = [tuple(body["prompt"]) for body in server.bodies]
    assert len(prompts) == len(set(prompts)) == 3 + 9 + 2 + 20
    sent = server.bodies[0]
    assert sent["ignore_eos"] and sent["stream"] and sent["max_tokens"] == 4 and sent["temperature"] == 0
    assert server.num_connections < len(prompts), "connections are kept"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_tokens": 3}, "3 output tokens came, 4 were asked for"),
        ({"counts": False}, "no usage"),
        ({"status": 503}, "status 503"),
        ({"cut": True}, "ended within an answer"),
    ],
)
def test_wrong_answers_are_failures(fields: dict[str, Any], reason: str) -> None:
    with running_completions(**fields) as server:
        (found,) = measure(server, Load(concurrency=2, num_requests=4))
    assert found["failures"] == 4 and found["output_tokens_per_s"] == 0
    assert any(reason in said for said in found["failure_reasons"])
    assert found["warnings"]


def test_an_open_loop_does_not_wait_for_answers() -> None:
    with running_completions(delay_s=0.5) as server:
        (found,) = measure(server, Load(rate=100, num_requests=20, warmup=0))
    assert found["failures"] == 0 and found["wall_s"] < 5 and found["ttft_ms"]["p50"] >= 500


def test_a_busy_client_is_told() -> None:
    found = {"failures": 0, "requests": 1, "client_late_ms": {"p99": 50.0}}
    assert len(warnings_of(found, {"share_of_a_core": 0.9}, 0.5)) == 3
    assert warnings_of({**found, "client_late_ms": {"p99": 1.0}}, {"share_of_a_core": 0.1}, 0.0) == []


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    size = ["--prompt-tokens", "5", "--output-tokens", "4", "--vocab-size", "200", "--json", str(out)]
    with running_completions() as server:
        arguments = [
            "--target",
            server.target,
            "--concurrency",
            "1,2",
            "--requests",
            "3",
            "--tier",
            f"me={os.getpid()}",
        ]
        assert load.main([*arguments, *size]) == 0
    told = capsys.readouterr()
    assert "| c=2" in told.out and "c=2: 3/3 requests" in told.err
    written = json.loads(out.read_text())
    assert [each["load"] for each in written["runs"]] == ["c=1", "c=2"]
    assert written["runs"][0]["tiers"]["me"]["peak_rss_bytes"] > 10**6 and written["machine"]["cores"]
    with running_completions(num_tokens=1) as server:
        assert load.main(["--target", server.target, "--concurrency", "1", "--requests", "3", *size]) == 1
    with pytest.raises(SystemExit):
        load.main(["--target", "127.0.0.1:1"])
    assert load.main(["--target", "127.0.0.1:1", "--concurrency", "1", "--tier", "gone=999999999"]) == 2


def test_a_failed_call_is_told_by_its_code_and_details(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, nothing, nothing, "prompts[0]:\nnone is there")
    assert in_one_line(error) == "AioRpcError: INVALID_ARGUMENT: prompts[0]: none is there"
    assert in_one_line(grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, nothing, nothing)) == "AioRpcError: INTERNAL: "
    assert in_one_line(ValueError("one\ntwo")) == "ValueError: one" and in_one_line(EOFError()) == "EOFError: "
    size = ["--concurrency", "1", "--requests", "2", "--warmup", "0", "--json", "-"]
    assert load.main(["--api", "grpc", "--target", f"127.0.0.1:{free_ports(1)[0]}", *size]) == 1
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert all(reason.startswith("AioRpcError: UNAVAILABLE: ") for reason in found["failure_reasons"])
    assert found["failures"] == 2 and all(len(reason) > 40 for reason in found["failure_reasons"])


def test_chat_takes_no_token_ids(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load.main(["--api", "chat", "--target", "127.0.0.1:1", "--concurrency", "1"])
    assert caught.value.code == 2 and "--prompt-form text --tokenizer FILE" in capsys.readouterr().err


def test_http_needs_neither_grpc_nor_torch() -> None:
    blocked = f"import sys; sys.modules.update(dict.fromkeys({('grpc', 'torch', 'transformers', 'google')!r}))"
    code = f"{blocked}; from benchmarks import load; load.main(sys.argv[1:])"
    with running_completions() as server:
        arguments = ["--target", server.target, "--concurrency", "1", "--requests", "2", "--output-tokens", "4"]
        made = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0 and "0/2" in made.stdout, made.stdout + made.stderr


def test_a_tier_inside_another_counts_once() -> None:
    burn = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass\ntime.sleep(20)"
    code = (
        f"import subprocess, sys\np = subprocess.Popen([sys.executable, '-c', {burn!r}])\n"
        "print(p.pid, flush=True)\np.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        inner = int(outer.stdout.readline())
        try:
            with TierMeter({"outer": outer.pid, "inner": inner}) as meter:
                limit_s = time.monotonic() + 20
                while time.monotonic() < limit_s and _cpu_s(inner) < 0.35:
                    time.sleep(0.05)
            found = meter.figures(1000)
        finally:
            os.kill(inner, 9)
    assert found["inner"]["cpu_s"] > 0.1 and found["outer"]["cpu_s"] < found["inner"]["cpu_s"]
    assert found["inner"]["cpu_s_per_1000_tokens"] == pytest.approx(found["inner"]["cpu_s"], abs=0.001)
    with pytest.raises(ValueError, match="no such process"), TierMeter({"gone": 999_999_999}):
        pass


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
