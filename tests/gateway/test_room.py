import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import httpx
import pytest

from gateway.backend import Backend
from gateway.room import Room
from gateway.submission import Submission
from gateway.text_requests import TextRequest
from gateway.tokenizer_tiers import TokenizerTiers
from tests.fakes.entrances import greet
from tests.fakes.identities import Callers
from tests.fakes.inference import infer_request
from tests.fakes.live_gateway import LiveGateway, gateway_over_fake, generate_request, live_gateway
from tests.fakes.tokenizer_tier import FakeTokenizerTier, fake_tokenizer_tier
from tokenwire.errors import InvalidRequest, Overloaded, TokenwireError, Unavailable
from tokenwire.kserve import inference_pb2_grpc
from tokenwire.requests import MAX_PRIORITY, RequestContext, Terminal
from tokenwire.status import from_rpc_error
from tokenwire.tasks import cancel_and_wait
from tokenwire.v1 import common_pb2, tokenizer_pb2
from tokenwire.wire import terminal_from_wire


class Sink:
    def __init__(self) -> None:
        self.terminal: Terminal | None = None

    def on_text(self, text: str, num_tokens: int, token_ids: Sequence[int], *more: Any) -> None:
        pass

    def on_finish(self, terminal: Terminal) -> None:
        assert self.terminal is None
        self.terminal = terminal


def entered(room: Room, name: str, priority: int = 0, *, num_choices: int = 1, started: bool = False) -> Submission:
    context = RequestContext(name, priority=priority)
    submission = Submission(TextRequest(), context, [Sink() for _ in range(num_choices)], room.leave)
    submission.started = started
    room.enter(submission)
    return submission


def reason_of(choice: Any) -> str | None:
    terminal = choice.sink.terminal
    return terminal.error.reason if terminal is not None else None


def test_what_is_miscounted_is_seen() -> None:
    room = Room(5)
    first = entered(room, "first", num_choices=2)
    entered(room, "second", 1)
    room.check_integrity()
    room.num_outputs = 2
    with pytest.raises(AssertionError, match="2 outputs are counted, of 3"):
        room.check_integrity()
    room.num_outputs = 3
    room.leave(first)
    room.check_integrity()


def test_the_lowest_priority_that_came_last_makes_way() -> None:
    room = Room(5)
    submissions = {
        name: entered(room, name, priority)
        for name, priority in (("low", -1), ("lowest", -2), ("low too", -1), ("even", 0), ("high", 3))
    }
    sinks = {name: list(submission.choices) for name, submission in submissions.items()}
    for name in ("lowest", "low too", "low"):
        room.require(1, 1, 0)
        assert [left for left, (choice,) in sinks.items() if choice.sink.terminal] != []
        assert reason_of(sinks[name][0]) == "MADE_WAY"
        entered(room, "new")
    with pytest.raises(Overloaded) as caught:
        room.require(1, 1, 0)
    assert caught.value.reason == "TOO_MANY_REQUESTS" and caught.value.retry_after_s
    assert room.num_outputs == 5


def test_what_has_begun_stays_and_nobody_leaves_in_vain() -> None:
    room = Room(4)
    begun = entered(room, "begun", -5, num_choices=2, started=True)
    waiting = entered(room, "waiting", -5)
    entered(room, "even")
    with pytest.raises(Overloaded):
        room.require(1, 2, 0)
    assert waiting.choices and begun.choices
    room.require(1, 1, 0)
    assert not waiting.choices and begun.choices and room.num_outputs == 3


def test_what_never_fits_is_the_callers_fault() -> None:
    with pytest.raises(InvalidRequest) as caught:
        Room(4).require(3, 2, 100)
    assert caught.value.violations[0].field == "options.num_choices"


def test_over_http_and_grpc_the_one_that_makes_way_hears_why() -> None:
    async def main() -> None:
        async with gateway_over_fake(max_concurrent_requests=2) as (tier, live):

            async def ask(prompt: str, priority: int) -> httpx.Response:
                return await live.http.post("/generate", json={"inputs": prompt, "priority": priority})

            begun = asyncio.ensure_future(ask("!hold a", -9))
            await tier.until(lambda: tier.num_running == 1)
            waits = asyncio.ensure_future(ask("!hang", -1))
            await tier.until(lambda: tier.num_running == 2)
            await live.until(lambda: any(s.started for s in live.server.backends._open))
            context = common_pb2.RequestContext(priority=1)
            (*_, last) = [r async for r in live.stub.Generate(generate_request("b", context=context))]
            assert last.finish.reason == common_pb2.FINISH_REASON_STOP_TOKEN
            response = await waits
            assert response.status_code == 429 and response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "made_way"
            await tier.until(lambda: tier.num_running == 1)
            assert not begun.done()
            begun.cancel()
            await asyncio.gather(begun, return_exceptions=True)
            await live.until_idle()
            assert live.server.backends.room.num_outputs == 0

    asyncio.run(main())


async def over_http(live: LiveGateway, priority: int) -> str:
    response = await live.http.post("/generate", json={"inputs": "!hang", "priority": priority})
    return str(response.json()["error"]["code"]).upper()


async def over_grpc(live: LiveGateway, priority: int) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await live.generate("!hang", context=common_pb2.RequestContext(priority=priority))
    return from_rpc_error(caught.value).reason


async def over_kserve(live: LiveGateway, priority: int) -> str:
    request = infer_request("!hang", parameters={"priority": MAX_PRIORITY + 1 - priority})
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inference_pb2_grpc.GRPCInferenceServiceStub(live.channel).ModelInfer(request)
    return from_rpc_error(caught.value).reason


async def over_session(live: LiveGateway, priority: int) -> str:
    call = live.stub.Session()
    await greet(call)
    request = tokenizer_pb2.TextRequest(text="!hang", context=common_pb2.RequestContext(priority=priority))
    await call.write(tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=1, request=request)]))
    while not (frame := await call.read()).finishes:
        pass
    call.cancel()
    error = terminal_from_wire(frame.finishes[0]).error
    assert error is not None
    return error.reason


WAYS = [over_http, over_grpc, over_kserve, over_session]


@pytest.mark.parametrize("newcomer", WAYS, ids=lambda way: way.__name__)
def test_the_lowest_leaves_first_whatever_it_came_by(newcomer: Callable[[LiveGateway, int], Awaitable[str]]) -> None:
    priorities = [-1, -4, -2, -3]

    async def main() -> None:
        async with gateway_over_fake(max_concurrent_requests=len(WAYS)) as (tier, live):
            waiting: dict[int, asyncio.Task[str]] = {}
            for way, priority in zip(WAYS, priorities, strict=True):
                waiting[priority] = asyncio.ensure_future(way(live, priority))
                await tier.until(lambda: tier.num_running == len(waiting))
            come: list[asyncio.Task[str]] = []
            for lowest in sorted(priorities):
                come.append(asyncio.ensure_future(newcomer(live, 1)))
                assert await asyncio.wait_for(waiting.pop(lowest), 10) == "MADE_WAY"
                await tier.until(lambda: tier.num_running == len(WAYS))
                assert not any(task.done() for task in (*waiting.values(), *come))
            assert await newcomer(live, 1) == await newcomer(live, 0) == "TOO_MANY_REQUESTS"
            assert not any(task.done() for task in come) and live.server.backends.room.num_outputs == len(WAYS)
            await cancel_and_wait(*come)
            await live.until_idle()

    asyncio.run(main())


async def one_prompt(live: LiveGateway) -> None:
    await live.generate("b", context=common_pb2.RequestContext(priority=1))


async def two_prompts(live: LiveGateway) -> None:
    await live.generate("b", "b", context=common_pb2.RequestContext(priority=1))


async def texts_to_embed(
    live: LiveGateway, priority: int = 1, headers: Mapping[str, str] = MappingProxyType({})
) -> None:
    request = tokenizer_pb2.EmbedRequest(texts=["b"], context={"priority": priority})
    await live.stub.Embed(request, metadata=tuple(headers.items()))


async def texts_to_embed_over_http(
    live: LiveGateway, priority: int = 1, headers: Mapping[str, str] = MappingProxyType({})
) -> None:
    body = {"model": "", "input": ["b"], "priority": priority}
    error = (await live.http.post("/v1/embeddings", json=body, headers=headers)).json()["error"]
    raise Unavailable(error["message"], reason=error["code"].upper())


def refusal(error: BaseException) -> str:
    return error.reason if isinstance(error, TokenwireError) else from_rpc_error(error).reason  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def waiting(tier: FakeTokenizerTier, live: LiveGateway, headers: Mapping[str, str]) -> AsyncIterator[None]:
    """While the block runs there is no room, and what waits would make way. Nobody must have in the end."""
    request = generate_request("!step a", context=common_pb2.RequestContext(priority=-1))

    async def text() -> str:
        call = live.stub.Generate(request, metadata=tuple(headers.items()))
        return "".join([response.delta.text async for response in call])

    low = [asyncio.ensure_future(text()) for _ in range(2)]
    await tier.until(lambda: tier.num_running == 2)
    yield
    tier.step()
    assert await asyncio.gather(*low) == ["a", "a"]


@pytest.mark.parametrize("ask", [one_prompt, two_prompts, texts_to_embed, texts_to_embed_over_http])
def test_nobody_makes_way_for_what_no_tier_takes(ask: Callable[[LiveGateway], Awaitable[None]], tmp_path: Path) -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier:
            listed = tmp_path / "tiers"
            listed.write_text(f"{tier.target}\n")
            settings = {"tokenizer_targets": f"file:{listed}", "discovery_interval_s": 0.1}
            async with live_gateway(**settings, max_concurrent_requests=2) as live, waiting(tier, live, {}):
                listed.write_text("")
                await live.until(lambda: not live.server.backends.tiers)
                with pytest.raises((grpc.aio.AioRpcError, TokenwireError)) as caught:
                    await ask(live)
                assert refusal(caught.value) == "TOKENIZER_TIER_DOWN"

    asyncio.run(main())


@pytest.mark.parametrize("ask", [texts_to_embed, texts_to_embed_over_http])
def test_nobody_makes_way_for_a_model_that_the_caller_may_not_use(
    ask: Callable[..., Awaitable[None]], tmp_path: Path
) -> None:
    callers = Callers.write(tmp_path / "identities.json")

    async def main() -> None:
        settings = {"identity_file": str(callers.path), "max_concurrent_requests": 2}
        async with gateway_over_fake(**settings) as (tier, live), waiting(tier, live, callers.header("alice")):
            with pytest.raises((grpc.aio.AioRpcError, TokenwireError)) as caught:
                await ask(live, priority=0, headers=callers.header("bob"))
            assert refusal(caught.value) == "MODEL_NOT_FOUND"

    asyncio.run(main())


def test_nobody_makes_way_for_a_prompt_that_is_too_large() -> None:
    async def main() -> None:
        limits = {"max_concurrent_requests": 2, "max_message_bytes": 4096}
        async with gateway_over_fake(**limits) as (tier, live), waiting(tier, live, {}):
            response = await live.http.post("/generate", json={"inputs": "b" * 5000, "priority": 1})
            assert response.status_code == 413 and "at most 4096" in response.json()["error"]["message"]

    asyncio.run(main())


def test_the_tier_of_a_single_prompt_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    choices, choose = 0, TokenizerTiers.choose

    def counted(tiers: TokenizerTiers, avoid: Sequence[Backend] = ()) -> Backend:
        nonlocal choices
        choices += 1
        return choose(tiers, avoid)

    monkeypatch.setattr(TokenizerTiers, "choose", counted)

    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            await live.generate("a")
            assert choices == 1

    asyncio.run(main())
