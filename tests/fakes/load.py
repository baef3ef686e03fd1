"""Mixed requests without a pause, each of which is followed to its end: text, typed error, or a broken promise.

Every prompt's text is learnt while nothing happens. Later a request must give that text, or end in a typed error after
a beginning of it; it must end once, and soon enough. Nothing is retried here but what the clients do by themselves.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from tokenwire.client import AsyncClient, AsyncSession, Finished, TextDelta
from tokenwire.errors import Internal, TokenwireError

NUM_PROMPTS = 16
PAUSE_AFTER_ERROR_S = 0.05
"""As a client waits before it tries again; without it a refusal is asked for a thousand times a second."""
HTTP_TIMEOUT = httpx.Timeout(120, connect=10)

Ask = Callable[[int], Awaitable[str]]
"""Sends the request of this number; returns its outcome."""


def options_of(number: int) -> dict[str, Any]:
    """Short and long, greedy and sampled."""
    return {
        "max_tokens": (3, 20, 60, 120)[number % 4],
        "ignore_eos": True,
        "temperature": 0.8 * (number % 2),
        "seed": number,
    }


def prompt_of(number: int) -> str:
    return f"Story number {number}. Once upon a time"


@dataclass
class Ledger:
    """What became of every request."""

    begun: Counter[str] = field(default_factory=Counter)
    """By way in."""
    ended: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    """`ok`, `cancelled`, or the reason of the error."""
    served: list[tuple[float, float]] = field(default_factory=list)
    """Of each that was served in full: when it had ended, and how long it took, seconds."""
    longest_s: float = 0.0
    num_not_let_in: int = 0
    """HTTP connections that were refused by one gateway of several, before anything was sent on them."""
    broken: list[str] = field(default_factory=list)
    """Promises that were not kept."""

    @property
    def num_open(self) -> int:
        return sum(self.begun.values()) - sum(self.ended.values())

    def seen(self) -> str:
        """The outcomes in one line, the frequent first."""
        return ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.most_common())


class Load:
    """Requests over every way in, until `stop`."""

    def __init__(
        self,
        targets: Sequence[str],
        http_urls: Sequence[str],
        *,
        may_cut: bool = False,
        more: Sequence[dict[str, Any]] = (),
    ) -> None:
        """`targets`: for gRPC, a client and a Session each. `http_urls`: gateways, of which any may be asked.

        `may_cut`: the gateway itself may go away, so connections may break without a word.

        `more`: options of further requests, one loop for each, whose texts are as reproducible as the others'.
        """
        self.ledger = Ledger()
        self.stop = False
        self._targets, self._http_urls, self._may_cut = targets, http_urls, may_cut
        self._more = more
        self._expected: dict[int, str] = {}
        self._expected_more: dict[int, str] = {}

    async def learn(self, num_prompts: int = NUM_PROMPTS) -> None:
        """The texts, while nothing happens."""
        async with AsyncClient(self._targets[0]) as client:
            for number in range(num_prompts):
                self._expected[number] = await client.generate(prompt_of(number), **options_of(number)).text()
            for index, options in enumerate(self._more):
                self._expected_more[index] = await client.generate(prompt_of(index), **options).text()
        assert len(set(self._expected.values())) > num_prompts // 2

    async def run(self, width: int = 2) -> None:
        """`width`: requests at a time of each kind, to each target."""
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(AsyncClient(target)) for target in self._targets]
            sessions = [await stack.enter_async_context(client.session()) for client in clients]
            kept, new = [await stack.enter_async_context(http_client(keeps=keeps)) for keeps in (True, False)]
            ways: list[tuple[str, Ask]] = [
                *(("grpc", partial(self._grpc, client)) for client in clients),
                *(("chat", partial(self._chat, client)) for client in clients),
                *(("session", partial(self._session, session)) for session in sessions),
                *(("cancel", partial(self._cancelled, client)) for client in clients),
                ("http stream", partial(self._http, kept, stream=True)),
                ("http", partial(self._http, kept, stream=False)),
                ("http stream, new connections", partial(self._http, new, stream=True)),
                ("http, new connections", partial(self._http, new, stream=False)),
            ]
            more = [(f"more {index}", partial(self._further, clients[0], index)) for index in self._expected_more]
            await asyncio.gather(*(self._loop(*way) for way in [*ways * width, *more]))

    async def until_served(self, num_requests: int, running: "asyncio.Future[None]", limit_s: float = 60) -> None:
        """Wait until so many more requests have been served in full, or `running`, which is `run()`, ends."""
        wanted = self.ledger.outcomes["ok"] + num_requests
        async with asyncio.timeout(limit_s):
            while self.ledger.outcomes["ok"] < wanted and not running.done():
                await asyncio.sleep(0.05)

    def _numbers(self) -> Iterator[int]:
        while not self.stop:
            yield random.choice(list(self._expected))

    async def _loop(self, way: str, ask: Ask) -> None:
        for number in self._numbers():
            began_s = time.monotonic()
            self.ledger.begun[way] += 1
            try:
                outcome = await ask(number)
            except TokenwireError as error:
                outcome = self._reason(error)
            except httpx.TransportError as error:
                outcome = "connection lost" if self._may_cut else f"BROKEN {way} {error!r}"
            except (AssertionError, ValueError, KeyError) as error:
                outcome = f"BROKEN {way} {number} {error!r}"
            now_s = time.monotonic()
            self.ledger.ended[way] += 1
            self.ledger.longest_s = max(self.ledger.longest_s, now_s - began_s)
            if outcome.startswith("BROKEN"):
                self.ledger.broken.append(outcome)
            self.ledger.outcomes[outcome] += 1
            if outcome == "ok":
                self.ledger.served.append((now_s, now_s - began_s))
            elif outcome != "cancelled":
                await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    def _reason(self, error: TokenwireError) -> str:
        if isinstance(error, Internal) and error.reason not in ("STEP_FAILED", "SEQUENCE_FAILED"):
            return f"BROKEN an error without a name: {error.reason} {error}"
        return error.reason

    async def _grpc(self, client: AsyncClient, number: int) -> str:
        text, num_ends = "", 0
        expected = self._expected[number]
        async for event in client.generate(prompt_of(number), **options_of(number)):
            assert num_ends == 0, "something came after the end"
            match event:
                case TextDelta():
                    text += event.text
                case Finished(terminal=terminal):
                    num_ends += 1
                    if terminal.error is not None:
                        assert expected.startswith(text), f"{text!r} is no beginning of {expected!r}"
                        return self._reason(terminal.error)
        assert num_ends == 1 and text == expected, f"{num_ends} ends, {text!r}, not {expected!r}"
        return "ok"

    async def _further(self, client: AsyncClient, index: int, _: int) -> str:
        (output,) = await client.generate(prompt_of(index), **self._more[index]).outputs()
        if output.error is not None:
            return self._reason(output.error)
        assert output.text == self._expected_more[index], (output.text, self._expected_more[index])
        return "ok"

    async def _chat(self, client: AsyncClient, _: int) -> str:
        (output,) = await client.chat("Hello", max_tokens=10, ignore_eos=True, timeout_s=60).outputs()
        if output.error is not None:
            return self._reason(output.error)
        assert output.terminal.usage.completion_tokens == 10
        return "ok"

    async def _session(self, session: AsyncSession, number: int) -> str:
        (output,) = await (await session.submit(prompt_of(number), **options_of(number))).outputs()
        if output.error is not None:
            assert self._expected[number].startswith(output.text)
            return self._reason(output.error)
        assert output.text == self._expected[number], (output.text, self._expected[number])
        return "ok"

    async def _cancelled(self, client: AsyncClient, number: int) -> str:
        """Left at a random point, also before it was sent."""
        stream = client.generate(prompt_of(number), max_tokens=500, ignore_eos=True)
        try:
            async with asyncio.timeout(random.choice([0, 0.001, 0.01, 0.1, 0.5])):
                async for event in stream:
                    if isinstance(event, Finished) and event.terminal.error is not None:
                        return self._reason(event.terminal.error)
        except TimeoutError:
            return "cancelled"
        finally:
            stream.close()
        return "ok"

    async def _http(self, http: httpx.AsyncClient, number: int, *, stream: bool) -> str:
        body = {"prompt": prompt_of(number), "stream": stream, **options_of(number)}
        response = await self._post(http, body)
        if response.status_code != 200:
            return error_of(response.json())
        expected = self._expected[number]
        if not stream:
            (choice,) = response.json()["choices"]
            assert choice["text"] == expected and choice["finish_reason"] == "length", choice
            return "ok"
        events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        messages = [json.loads(data) for data in events if data != "[DONE]"]
        text = "".join(choice["text"] for message in messages for choice in message.get("choices", ()))
        errors = [message for message in messages if "error" in message]
        if errors:
            assert len(errors) == 1 and expected.startswith(text), events[-3:]
            return error_of(errors[0])
        ends = [c["finish_reason"] for message in messages for c in message["choices"] if c["finish_reason"]]
        assert text == expected and ends == ["length"] and events[-1] == "[DONE]", events[-3:]
        return "ok"

    async def _post(self, http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        """From whichever gateway lets us in."""
        *before, last = random.sample(self._http_urls, len(self._http_urls))
        for url in before:
            try:
                return await http.post(f"{url}/v1/completions", json=body)
            except httpx.ConnectError:
                self.ledger.num_not_let_in += 1
        return await http.post(f"{last}/v1/completions", json=body)


def http_client(*, keeps: bool) -> httpx.AsyncClient:
    """`keeps`: whether connections serve more than one request."""
    limits = httpx.Limits(max_keepalive_connections=10 if keeps else 0)
    return httpx.AsyncClient(trust_env=False, timeout=HTTP_TIMEOUT, limits=limits)


def error_of(body: dict[str, Any]) -> str:
    """The name of an error as HTTP tells it. Raises KeyError for one that has none."""
    code = body["error"]["code"]
    assert isinstance(code, str) and code, body
    return code.upper()
