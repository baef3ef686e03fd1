"""What a call held is gone with its answer, without waiting for a look for garbage: bodies may be large."""

import asyncio
import gc

import pytest

from gateway.http.calls import HttpCall
from gateway.http.openai_completions import CompletionBody
from tests.fakes.live_gateway import gateway_over_fake
from tests.fakes.tokenizer_tier import MODEL


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("prompt", "status"), [("a b", 200), ("!bad a", 400)])
def test_calls_and_bodies_are_let_go(prompt: str, status: int, stream: bool) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            gc.collect()
            gc.disable()
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 2, "stream": stream}
            for _ in range(3):
                response = await live.http.post("/v1/completions", json=body)
                assert response.status_code == status
            for _ in range(10):
                await asyncio.sleep(0.01)
            assert not [each for each in gc.get_objects() if type(each) in (HttpCall, CompletionBody)]

    try:
        asyncio.run(main())
    finally:
        gc.enable()
