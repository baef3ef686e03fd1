"""What a browser's call held is gone with its answer, without waiting for a look for garbage."""

import asyncio
import gc
from collections import Counter

import pytest

from gateway.web.answers import FramedAnswer, WholeAnswer
from gateway.web.context import WebContext
from tests.fakes.live_gateway import gateway_over_fake, generate_request
from tests.fakes.web_caller import FORMS, WebCaller
from tokenwire.v1 import gateway_pb2, tokenizer_pb2

KINDS = (WebContext, FramedAnswer, WholeAnswer, gateway_pb2.GenerateRequest, tokenizer_pb2.EmbedRequest)


def held() -> Counter[str]:
    """What there is of KINDS. Messages are not tracked themselves, so whatever refers to one is asked."""
    found = {
        id(one): type(one).__name__
        for each in gc.get_objects()
        for one in (each, *gc.get_referents(each))
        if type(one) in KINDS
    }
    return Counter(found.values())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("prompt", "code"), [("a b", "OK"), ("!bad a", "INVALID_ARGUMENT")])
def test_calls_and_messages_are_let_go(prompt: str, code: str, form: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            web = WebCaller(live.http, form)
            gc.collect()
            gc.disable()
            before = held()  # what other tests are made of
            for _ in range(3):
                assert (await web.call("Generate", generate_request(prompt))).code == code
                assert (await web.call("Embed", tokenizer_pb2.EmbedRequest())).code == "INVALID_ARGUMENT"
                assert (await web.call("Generate", b"\xff")).code == "INVALID_ARGUMENT"
            async with web.open("Generate", generate_request("!hold a")) as messages:
                await anext(messages)
            await tier.until(lambda: not tier.num_running)
            for _ in range(10):
                await asyncio.sleep(0.01)
            tier.requests.clear()
            assert not held() - before

    try:
        asyncio.run(main())
    finally:
        gc.enable()
