import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.metrics import GatewayMetrics, RequestRecord
from tests.fakes.live_gateway import gateway_over_fake, generate_request, live_gateway
from tests.fakes.tokenizer_tier import fake_tokenizer_tier
from tests.waiting import wait_for
from tokenwire.addresses import free_ports, is_free
from tokenwire.errors import FailedPrecondition, Overloaded
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2 as pb

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(live, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(live.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


def test_health_follows_the_tier_below() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier(serving=False) as tier, live_gateway(tier, wait=False) as live:
            assert await health_of(live) == NOT_SERVING
            assert tier.server is not None
            await tier.server.set_serving(True)
            async with asyncio.timeout(10):
                while await health_of(live, "tokenwire.v1.GenerationService") != SERVING:
                    await asyncio.sleep(0.005)
            await tier.kill()
            async with asyncio.timeout(10):
                while await health_of(live) == SERVING:
                    await asyncio.sleep(0.005)

    asyncio.run(main())


@pytest.mark.parametrize("which", ["port", "http_port"])
def test_a_port_that_is_in_use_is_told_before_a_tier_is_waited_for(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.FIRST_CONTACT_S", 3600)

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            async with asyncio.timeout(30):
                with pytest.raises(FailedPrecondition) as caught:
                    async with live_gateway(wait=False, **{which: taken.getsockname()[1]}):
                        pass
        assert caught.value.reason == "PORT_IN_USE"

    asyncio.run(main())


def test_who_comes_before_the_first_tier_was_found_is_answered_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not told that there is none, which it would be of a gateway that has just been started."""
    monkeypatch.setattr("gateway.server.FIRST_CONTACT_S", 30)
    found = asyncio.Event()

    async def resolve(host: str, port: int) -> list[str]:
        await found.wait()
        return [f"127.0.0.1:{port}"]

    async def main() -> None:
        (port,) = free_ports(1)
        async with fake_tokenizer_tier() as tier:
            targets = f"dns:///tiers.test:{tier.target.rpartition(':')[2]}"
            starting = live_gateway(wait=False, resolve=resolve, tokenizer_targets=targets, http_port=port)
            entering = asyncio.ensure_future(starting.__aenter__())
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                await asyncio.to_thread(wait_for, lambda: not is_free(port))
                asked = asyncio.ensure_future(client.post("/generate", json={"inputs": "hello"}))
                await asyncio.sleep(0.2)
                assert not entering.done() and not asked.done()
                found.set()
                assert (await asked).status_code == 200
            await entering
            await starting.__aexit__(None, None, None)

    asyncio.run(main())


def test_a_gateway_without_tiers_says_so_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.FIRST_CONTACT_S", 0.05)

    async def main() -> None:
        async with live_gateway(wait=False) as live:
            answer = await live.http.post("/generate", json={"inputs": "hello"})
            assert answer.status_code == 503 and "no tokenizer tier can answer" in answer.text
            assert await health_of(live) == NOT_SERVING

    asyncio.run(main())


def test_tiers_are_looked_at_when_they_change_and_not_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(GatewayMetrics, "show_sessions", lambda metrics, states: looks.append(len(list(states))))

    async def main() -> None:
        async with fake_tokenizer_tier() as tier, live_gateway(tier) as live:
            await asyncio.sleep(0.02)
            num_before = len(looks)
            for _ in range(20):
                await live.stub.Generate(generate_request("hello")).read()
                await live.until_idle()
            assert num_before <= len(looks) < num_before + 10
            await tier.kill()
            await live.until(lambda: len(looks) > num_before)

    asyncio.run(main())


def test_a_drain_lets_nobody_in_and_answers_who_is_there() -> None:
    async def main() -> None:
        async with gateway_over_fake(drain_timeout_s=20) as (tier, live):
            async with httpx.AsyncClient(base_url=live.http_url, trust_env=False) as idle:
                assert (await idle.get("/readyz")).status_code == 200
                call = live.stub.Generate(generate_request("!step a b"))
                body = {"inputs": "!step c d", "stream": True}
                streamed = asyncio.ensure_future(live.http.post("/generate", json=body))
                await tier.until(lambda: tier.num_running == 2)
                draining = asyncio.ensure_future(live.server.drain())
                await live.until(lambda: live.server.generation.draining)
                await asyncio.sleep(0.02)
                async with httpx.AsyncClient(base_url=live.http_url, trust_env=False) as other:
                    with pytest.raises(httpx.ConnectError):
                        await other.get("/readyz")
                response = await idle.post("/generate", json={"inputs": "x"})
                assert response.status_code == 200 and response.headers["connection"] == "close"
                stepping = asyncio.ensure_future(_step(tier))
                assert "".join([response.delta.text async for response in call]) == "a b"
                assert (await streamed).text.endswith("data: [DONE]\n\n")
                await draining
                stepping.cancel()

    asyncio.run(main())


async def _step(tier) -> None:
    while True:
        tier.step()
        await asyncio.sleep(0.002)


def test_what_outlasts_the_drain_ends_with_a_typed_error() -> None:
    async def main() -> None:
        async with gateway_over_fake(drain_timeout_s=0.6) as (tier, live):
            call = live.stub.Generate(generate_request("!hold a b"))
            assert (await call.read()).delta.text == "a"
            body = {"messages": [{"role": "user", "content": "!hold c d"}], "stream": True}
            async with live.http.stream("POST", "/v1/chat/completions", json=body) as streamed:
                draining = asyncio.ensure_future(live.server.drain())
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert from_rpc_error(caught.value).reason == "SHUTTING_DOWN"
                *_, last = [line async for line in streamed.aiter_lines() if line]
                assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
            await draining
            await tier.until(lambda: tier.num_running == 0)

    asyncio.run(main())


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TOKENWIRE_")}
    command = [sys.executable, "-m", "gateway", "--metrics-port", "0", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**clean, **environment})


def failure(*arguments: str, **environment: str) -> tuple[int, list[str]]:
    """Exit status and what was said."""
    with start(*arguments, **environment) as process:
        _, said = process.communicate(timeout=60)
    return process.returncode, said.strip().splitlines()


@pytest.mark.parametrize("flag", ["--port", "--http-port"])
def test_a_port_in_use_is_one_clear_line(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        other = "--http-port" if flag == "--port" else "--port"
        status, said = failure(flag, port, other, "0")
    assert status == 1 and "Traceback" not in "".join(said)
    assert port in said[-1] and flag in said[-1]


def test_a_public_address_needs_insecure() -> None:
    status, said = failure("--host", "0.0.0.0", "--port", "0", "--http-port", "0")
    assert status == 1 and len(said) == 1 and "--insecure" in said[0]


def test_an_unknown_variable_is_refused_and_kubernetes_own_are_not() -> None:
    status, said = failure(TOKENWIRE_GATEWAY_PROT="5")
    assert status == 2 and "TOKENWIRE_GATEWAY_PROT" in said[-1]


def test_sigterm_drains_and_exits_with_0() -> None:
    environment = {
        "TOKENWIRE_LOG": "json",
        "TOKENWIRE_GATEWAY_PORT": "tcp://10.0.0.1:50051",
        "TOKENWIRE_GATEWAY_SERVICE_HOST": "10.0.0.1",
    }
    with start("--port", "0", "--http-port", "0", "--tokenizer-targets", "127.0.0.1:1", **environment) as process:
        assert process.stderr is not None
        said = map(json.loads, process.stderr)
        listening = next(line for line in said if line["message"] == "listening")
        response = httpx.get(f"http://127.0.0.1:{listening['http_port']}/readyz", trust_env=False)
        assert response.status_code == 503
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        assert json.loads(process.stderr.read().splitlines()[-1])["message"] == "stopped"


def test_the_gateway_loads_no_model_library() -> None:
    script = "import gateway.server, sys; print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_each_request_leaves_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            await live.generate("a b", "", context=pb.RequestContext(request_id="mine"))
            await live.until(lambda: live.count("grpc.generate", "invalid_argument") == 1)

    with caplog.at_level(logging.INFO):
        asyncio.run(main())
    (line,) = [record for record in caplog.records if record.getMessage() == "request finished"]
    said = line.tokenwire_fields
    assert (said["request_id"], said["api"], said["prompts"]) == ("mine", "grpc.generate", 2)
    assert said["completion_tokens"] == 2 and said["reasons"] == "error:1,stop_token:1"
    assert said["total_s"] >= said["first_text_s"] > 0


def test_a_record_counts_once_and_tells_how_it_ended() -> None:
    async def main() -> None:
        async with live_gateway(wait=False) as live:
            metrics: GatewayMetrics = live.server.generation.metrics
            with pytest.raises(Overloaded), RequestRecord(metrics, "x"):
                raise Overloaded("full")
            with pytest.raises(asyncio.CancelledError), RequestRecord(metrics, "x"):
                raise asyncio.CancelledError
            with pytest.raises(KeyError), RequestRecord(metrics, "x") as record:
                raise KeyError
            record.close()
            outcomes = ("resource_exhausted", "cancelled", "internal")
            assert [live.count("x", outcome) for outcome in outcomes] == [1, 1, 1]

    asyncio.run(main())
