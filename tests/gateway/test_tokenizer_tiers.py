"""Tokenizer tiers that come, go and fail: who is asked, who is passed over, and what is tried again."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from tests.fakes.live_gateway import LiveGateway, generate_request, live_gateway
from tests.fakes.tokenizer_tier import FakeTokenizerTier, fake_tokenizer_tier
from tokenwire.errors import Internal, Overloaded, TokenwireError, Unavailable
from tokenwire.routing import breaker
from tokenwire.routing.breaker import BreakerState
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import tokenizer_pb2

DOWN = Unavailable("no model tier can take the request", reason="MODEL_TIER_DOWN")
GOODBYE = Unavailable("the tokenizer tier is shutting down", reason="SHUTTING_DOWN")


async def until_all_ready(live: LiveGateway, number: int = 2) -> None:
    await live.until(lambda: [b.ready for b in live.server.backends.tiers] == [True] * number)


async def text_of(live: LiveGateway, prompt: str, **fields: object) -> str:
    return "".join(response.delta.text for response in await live.generate(prompt, **fields))


async def error_of(live: LiveGateway, prompt: str = "a b") -> TokenwireError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await live.generate(prompt)
    return from_rpc_error(caught.value)


def sample(live: LiveGateway, name: str, **labels: str) -> float:
    return live.registry.get_sample_value(f"tokenwire_gateway_{name}", labels) or 0.0


def backend_of(live: LiveGateway, tier: FakeTokenizerTier) -> object:
    return next(b for b in live.server.backends.tiers if b.target == tier.target)


def test_what_fails_before_its_first_text_goes_elsewhere_and_the_failing_tier_is_passed_over() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as bad, fake_tokenizer_tier() as good:
            bad.failure = DOWN
            async with live_gateway(bad, good, breaker_failures=3) as live:
                await until_all_ready(live)
                for _ in range(20):
                    assert await text_of(live, "a b c") == "a b c"
                assert len(bad.requests) == 3, "then its breaker opened"
                assert len(good.requests) == 20
                assert sample(live, "retries_total") == 3 and sample(live, "ejections_total") == 1
                await live.until(lambda: sample(live, "tokenizer_sessions", state="ejected") == 1)
                assert sample(live, "tokenizer_sessions", state="ready") == 1
                assert live.count("grpc.generate", "ok") == 20

    asyncio.run(main())


def test_a_tier_that_works_again_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE_S", 0.05)

    async def main() -> None:
        async with fake_tokenizer_tier() as bad, fake_tokenizer_tier() as good:
            bad.failure = DOWN
            async with live_gateway(bad, good, breaker_failures=1) as live:
                await until_all_ready(live)
                tried = backend_of(live, bad)
                while tried.breaker.state is BreakerState.CLOSED:
                    assert await text_of(live, "a") == "a"
                bad.failure = None
                while tried.breaker.state is not BreakerState.CLOSED:
                    assert await text_of(live, "a") == "a"
                    await asyncio.sleep(0.01)
                seen = len(bad.requests)
                calls = [live.stub.Generate(generate_request("!hang")) for _ in range(4)]
                for call in calls:
                    asyncio.ensure_future(call.initial_metadata())
                await live.until(lambda: (bad.num_running, good.num_running) == (2, 2))
                assert len(bad.requests) == seen + 2

    asyncio.run(main())


def test_when_all_fail_each_is_asked_once_and_no_more_is_tried_again_than_the_budget_holds() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two:
            one.failure = two.failure = DOWN
            async with live_gateway(one, two, breaker_failures=0, retry_budget=5) as live:
                await until_all_ready(live)
                for _ in range(30):
                    assert (await error_of(live)).reason == "MODEL_TIER_DOWN"
                assert len(one.requests) + len(two.requests) == 35
                one.failure = two.failure = None
                for _ in range(5):
                    await live.generate("a")
                one.failure = two.failure = DOWN
                before = len(one.requests) + len(two.requests)
                for _ in range(3):
                    await error_of(live)
                assert len(one.requests) + len(two.requests) == before + 4, "five that ended well paid for one"

    asyncio.run(main())


@pytest.mark.parametrize("failure", [Internal("a bug"), Overloaded("full", reason="TOO_MANY_REQUESTS")])
def test_what_is_no_loss_is_not_tried_again(failure: TokenwireError) -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two:
            one.failure = two.failure = failure
            async with live_gateway(one, two) as live:
                await until_all_ready(live)
                assert type(await error_of(live)) is type(failure)
                assert len(one.requests) + len(two.requests) == 1

    asyncio.run(main())


def test_what_a_lost_session_carried_goes_to_another_process_although_a_second_session_to_it_is_idle() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two:
            async with live_gateway(one, two, sessions_per_target=2) as live:
                await until_all_ready(live, 4)
                calls = [asyncio.ensure_future(live.generate("!step a")) for _ in range(2)]
                await live.until(lambda: one.num_running == two.num_running == 1)
                tiers = live.server.backends.tiers
                await next(b for b in tiers if b.target == one.target and b.num_open).session.close()
                await two.until(lambda: two.num_running == 2)
                assert len(one.requests) == 1
                two.step()
                for responses in await asyncio.gather(*calls):
                    assert "".join(response.delta.text for response in responses) == "a"

    asyncio.run(main())


def test_what_has_begun_is_not_begun_again() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two, live_gateway(one, two) as live:
            await until_all_ready(live)
            assert (await error_of(live, "!lost a b")).code == "UNAVAILABLE"
            assert len(one.requests) + len(two.requests) == 1

    asyncio.run(main())


def test_what_a_tier_that_stops_sends_elsewhere_needs_no_budget_and_is_no_failure() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two, fake_tokenizer_tier() as three:
            one.failure = two.failure = GOODBYE
            async with live_gateway(one, two, three, breaker_failures=1, retry_budget=0) as live:
                await until_all_ready(live, 3)
                for _ in range(10):
                    assert await text_of(live, "a b") == "a b"
                assert len(three.requests) == 10
                assert all(b.breaker.state is BreakerState.CLOSED for b in live.server.backends.tiers)

    asyncio.run(main())


def test_all_choices_of_a_prompt_begin_again_together_and_end_once() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as bad, fake_tokenizer_tier() as good:
            bad.failure = DOWN
            async with live_gateway(bad, good, breaker_failures=0) as live:
                await until_all_ready(live)
                options = pb.GenerationOptions(num_choices=3)
                for _ in range(4):
                    responses = await live.generate("a b", options=options)
                    finished = [r.finish for r in responses if r.HasField("finish")]
                    assert len(finished) == 3
                    for choice in range(3):
                        text = "".join(r.delta.text for r in responses if r.HasField("delta") and r.choice == choice)
                        assert text == "a b"
                assert bad.requests and all(request.options.num_choices == 3 for request in good.requests)
                await live.until(lambda: good.num_running == bad.num_running == 0)

    asyncio.run(main())


def test_unary_calls_follow_the_same_breakers_and_budget() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as bad, fake_tokenizer_tier() as good:
            bad.failure = DOWN
            async with live_gateway(bad, good, breaker_failures=2) as live:
                await until_all_ready(live)
                for _ in range(10):
                    await live.stub.Tokenize(tokenizer_pb2.TokenizeRequest(texts=["a"]))
                assert (bad.num_tokenized, good.num_tokenized) == (2, 10)
            async with live_gateway(bad, good, breaker_failures=0, retry_budget=0) as live:
                await until_all_ready(live)
                with pytest.raises(grpc.aio.AioRpcError):
                    await live.stub.Tokenize(tokenizer_pb2.TokenizeRequest(texts=["a"]))

    asyncio.run(main())


def test_a_request_that_its_client_took_back_is_not_begun_again() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two, live_gateway(one, two) as live:
            await until_all_ready(live)
            one.deaf = two.deaf = True
            call = live.stub.Session()
            await call.write(tokenizer_pb2.SessionRequest(hello=pb.Hello(protocol_version=1)))
            await call.read()
            request = generate_request("!hang")
            text = tokenizer_pb2.TextRequest(context=request.context, text="!hang")
            await call.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=1, request=text)]))
            await live.until(lambda: one.num_running + two.num_running == 1)
            await call.write(tokenizer_pb2.SessionRequest(cancels=[pb.Cancel(handle=1)]))
            await live.until(lambda: one.cancels or two.cancels)
            first, second = (one, two) if one.num_running else (two, one)
            await first.kill()
            finishes = []
            while not finishes:
                finishes += (await call.read()).finishes
            assert not second.requests and len(finishes) == 1
            call.cancel()

    asyncio.run(main())


def test_tiers_of_a_file_come_and_go_and_what_runs_ends_where_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two:
            listed = tmp_path / "tiers"
            listed.write_text(f"{one.target}\n")
            settings = {"tokenizer_targets": f"file:{listed}", "discovery_interval_s": 0.1}
            async with live_gateway(**settings) as live:
                running = asyncio.ensure_future(live.generate("!step a b"))
                await one.until(lambda: one.num_running == 1)
                listed.write_text(f"{two.target}\n")
                await live.until(lambda: [b.target for b in live.server.backends.tiers] == [two.target])
                await live.until_ready()
                for _ in range(3):
                    assert await text_of(live, "a") == "a"
                assert (len(one.requests), len(two.requests)) == (1, 3)
                assert sample(live, "tokenizer_sessions", state="leaving") == 1
                while not running.done():
                    one.step()
                    await asyncio.sleep(0.002)
                assert "".join(response.delta.text for response in running.result()) == "a b"
                await live.until(lambda: not one.num_running)
                listed.write_text("")
                await live.until(lambda: "none is known" in live.server.backends.missing())

    asyncio.run(main())


def test_a_name_is_resolved_again_and_sessions_follow_it() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as one, fake_tokenizer_tier() as two:
            found = [one.target]

            async def resolve(host: str, port: int) -> Sequence[str]:
                if not found:
                    raise OSError("Name or service not known")
                return found

            settings = {
                "tokenizer_targets": "dns:///tokenizer-headless:50052",
                "discovery_interval_s": 0.1,
                "sessions_per_target": 2,
            }
            async with live_gateway(resolve=resolve, **settings) as live:
                await until_all_ready(live)
                found.append(two.target)
                await until_all_ready(live, 4)
                for _ in range(4):
                    call = live.stub.Generate(generate_request("!hang"))
                    asyncio.ensure_future(call.initial_metadata())
                await live.until(lambda: one.num_running + two.num_running == 4)
                found.clear()
                await asyncio.sleep(0.25)
                assert len(live.server.backends.tiers) == 4, "what cannot be resolved takes nothing away"

    asyncio.run(main())
