"""What a request held is gone with its end, without waiting for a look for garbage: prompts may be large."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.live_tokenizer_tier import text_request, tokenizer_over_fake
from tokenizer_svc.encoder import EncodedPrompt
from tokenizer_svc.running_request import NO_PROMPT
from tokenwire.requests import FinishReason


def prompts_held() -> list[Any]:
    return [each for each in gc.get_objects() if type(each) is EncodedPrompt and each is not NO_PROMPT]


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
            gc.collect()
            gc.disable()
            for handle in range(1, 6):
                request = text_request(f"{handle} {text}")
                request.options.stop.stop_strings.extend([stop_string] if stop_string else [])
                await peer.submit(handle, request)
                assert (await peer.end(handle)).reason is reason
            await live.until_idle()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not prompts_held()

    try:
        asyncio.run(main())
    finally:
        gc.enable()
