"""All three tiers with connections that age within half a second, under load: nobody notices.

The same requests against tiers whose connections last give the texts to compare with.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.whole_stack import WholeStack, whole_stack
from tokenwire.client import AsyncClient, AsyncSession
from tokenwire.requests import FinishReason

AGE_S = 0.4
NUM_EACH = 6
"""Requests of each kind that run side by side."""
ROUNDS = 6


def tokens_of(number: int) -> int:
    """Short ones, and ones that outlast several connections."""
    return random.Random(number).choice([4, 40, 300])


class Load:
    """Every way in, and the texts that came of each request by its name."""

    def __init__(self, client: AsyncClient, session: AsyncSession, http: httpx.AsyncClient) -> None:
        self.texts: dict[str, str] = {}
        self._client, self._session, self._http = client, session, http

    async def run(self) -> None:
        ways: list[Callable[[int], Awaitable[str]]] = [
            self.generate, self.submit, self.http_stream, self.http_whole, self.tokenize,
        ]  # fmt: skip

        async def one_after_the_other(way: Callable[[int], Awaitable[str]], first: int) -> None:
            for number in range(first, first + ROUNDS):
                name = f"{way.__name__} {number}"
                assert name not in self.texts
                self.texts[name] = await way(number)

        await asyncio.gather(*(one_after_the_other(way, which * ROUNDS) for way in ways for which in range(NUM_EACH)))

    def options(self, number: int) -> dict[str, Any]:
        return {"max_tokens": tokens_of(number), "ignore_eos": True, "seed": number, "temperature": 0.8}

    async def generate(self, number: int) -> str:
        (output,) = await self._client.generate(f"prompt {number}", **self.options(number)).outputs()
        assert output.terminal.reason is FinishReason.LENGTH
        return output.text

    async def submit(self, number: int) -> str:
        outputs = await self._session.submit(f"prompt {number}", **self.options(number))
        (output,) = await outputs.outputs()
        assert output.terminal.reason is FinishReason.LENGTH
        return output.text

    async def http_whole(self, number: int) -> str:
        response = await self._http.post("/v1/completions", json=self.body(number))
        assert response.status_code == 200, response.text
        (choice,) = response.json()["choices"]
        assert choice["finish_reason"] == "length"
        return str(choice["text"])

    async def http_stream(self, number: int) -> str:
        async with self._http.stream("POST", "/v1/completions", json={**self.body(number), "stream": True}) as response:
            lines = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
        return "".join(choice["text"] for choice in choices)

    def body(self, number: int) -> dict[str, Any]:
        return {"prompt": f"prompt {number}", **self.options(number)}

    async def tokenize(self, number: int) -> str:
        (encoding,) = await self._client.tokenize(f"prompt {number}")
        return str(list(encoding.token_ids))


async def texts_of(stack: WholeStack) -> dict[str, str]:
    async with AsyncClient(stack.gateway.grpc_target) as client, client.session() as session:
        load = Load(client, session, stack.gateway.http)
        async with asyncio.timeout(120):
            await load.run()
    await stack.until_idle()
    return load.texts


def test_nothing_is_lost_while_connections_come_and_go(trained_folder: Path) -> None:
    age = {"max_connection_age_s": AGE_S}

    async def main() -> None:
        async with whole_stack(trained_folder, mock_step_ms=4.0) as lasting:
            expected = await texts_of(lasting)
        async with whole_stack(trained_folder, gateway=age, tokenizer=age, mock_step_ms=4.0, **age) as aging:
            (above,) = aging.gateway.server.backends.tiers
            (below,) = aging.tokenizer.server.replicas
            opened = [count_calls(above, "on_ready"), count_calls(below, "on_ready")]
            found = await texts_of(aging)
            assert all(sum(calls) >= 4 for calls in opened), "the sessions between tiers moved on several times"
            assert aging.gateway.registry.get_sample_value("tokenwire_gateway_retries_total") == 0
            assert aging.tokenizer.metric("resumes_total") == aging.tokenizer.metric("retries_total") == 0
            assert above.breaker.admits and below.breaker.admits
        assert found == expected

    asyncio.run(main())


def count_calls(listener: Any, name: str) -> list[int]:
    """One entry for each call of this method from now on."""
    calls: list[int] = []
    method = getattr(listener, name)

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return method(*arguments)

    setattr(listener, name, counted)
    return calls


def test_an_http_connection_is_left_after_its_age_with_the_answer_that_says_so(trained_folder: Path) -> None:
    async def main() -> None:
        async with whole_stack(trained_folder, gateway={"max_connection_age_s": 0.3}) as stack:
            http = stack.gateway.http
            young = await http.get("/v1/models")
            assert "connection" not in young.headers
            await asyncio.sleep(0.35)
            old = await http.get("/v1/models")
            assert old.status_code == 200 and old.headers["connection"] == "close"
            again = await http.get("/v1/models")
            assert again.status_code == 200 and "connection" not in again.headers

    asyncio.run(main())
