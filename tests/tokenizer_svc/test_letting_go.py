"""What a request held is gone with its end, without waiting for a look for garbage: prompts may be large."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.live_tokenizer_tier import LiveTokenizerTier, live_tokenizer_tier, text_request, tokenizer_over_fake
from tests.fakes.model_tier import fake_model_tier
from tokenizer_svc.encoder import EncodedPrompt
from tokenizer_svc.running_request import NO_PROMPT
from tokenizer_svc.sessions import TextSession
from tokenizer_svc.text_request import TextRequest
from tokenwire.errors import InvalidRequest, Overloaded
from tokenwire.requests import FinishReason
from tokenwire.status import from_wire
from tokenwire.v1 import common_pb2, tokenizer_pb2


def held() -> list[Any]:
    """Prompts and requests."""
    kinds = (EncodedPrompt, TextRequest)
    return [each for each in gc.get_objects() if type(each) in kinds and each is not NO_PROMPT]


@asynccontextmanager
async def collecting_nothing(live: LiveTokenizerTier) -> AsyncIterator[None]:
    """Afterwards nothing is to be held of what ran meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
        await live.until_idle()
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                while held():  # an encoder's thread may be at its last lines still
                    await asyncio.sleep(0.01)
        assert not held()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("text", "stop_string", "reason"),
    [
        ("hello there", "", FinishReason.LENGTH),
        ("hello there", "the", FinishReason.STOP_STRING),
        ("too long for its context " * 20, "", FinishReason.ERROR),
    ],
)
def test_prompts_are_let_go(trained_folder: Path, text: str, stop_string: str, reason: FinishReason) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, max_context_tokens=60) as (_, live, peer):
            async with collecting_nothing(live):
                for handle in range(1, 6):
                    request = text_request(f"{handle} {text}")
                    request.options.stop.stop_strings.extend([stop_string] if stop_string else [])
                    await peer.submit(handle, request)
                    assert (await peer.end(handle)).reason is reason

    asyncio.run(main())


def test_requests_are_let_go_that_find_the_tier_full(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, {"max_requests": 1}) as (_, live, peer):
            async with collecting_nothing(live):
                for handle in range(1, 11, 2):
                    request = text_request("two choices are more than one")
                    request.options.num_choices = 2
                    await peer.submit(handle, request)
                    assert isinstance((await peer.end(handle)).error, Overloaded)

    asyncio.run(main())


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "out of time"])
def test_requests_are_let_go_that_end_while_they_are_encoded(trained_folder: Path, cancelled: bool) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, {"encode_window_ms": 20.0}) as (fake, live, peer):
            async with collecting_nothing(live):
                for handle in range(1, 6):
                    request = text_request(f"{handle} long " * 80)
                    if not cancelled:
                        request.context.timeout_ms = 1
                    await peer.send(
                        submits=[tokenizer_pb2.Submit(handle=handle, request=request)],
                        cancels=[common_pb2.Cancel(handle=handle)] if cancelled else [],
                    )
                    reason = (await peer.end(handle)).reason
                    assert reason is (FinishReason.CANCELLED if cancelled else FinishReason.DEADLINE)
            assert not fake.requests

    asyncio.run(main())


def test_requests_are_let_go_that_no_model_tier_takes(trained_folder: Path) -> None:
    async def main() -> None:
        async with tokenizer_over_fake(trained_folder, {"max_held_requests": 0}) as (fake, live, peer):
            await fake.kill()
            await live.until_ready(0)
            async with collecting_nothing(live):
                for handle in range(1, 6):
                    await peer.submit(handle, text_request("hello there"))
                    assert (await peer.end(handle)).reason is FinishReason.ERROR

    asyncio.run(main())


def test_a_refused_submit_is_not_held_by_its_error(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier() as fake, live_tokenizer_tier(trained_folder, fake) as live:
            session = TextSession(live.server.tier, lambda _: None)
            frame = tokenizer_pb2.SessionRequest(
                submits=[tokenizer_pb2.Submit(handle=1, request=text_request("hello", request_id="y" * 1000))]
            )
            num_held = sys.getrefcount(frame)
            session.on_frame(frame)
            assert sys.getrefcount(frame) == num_held
            answer = await session.next_frame()
            assert answer is not None and isinstance(from_wire(answer.finishes[0].error), InvalidRequest)

    asyncio.run(main())
