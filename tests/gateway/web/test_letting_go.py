"""What a browser's call held is gone with its answer, without waiting for a look for garbage."""

import asyncio

import pytest

from gateway.web.answers import FramedAnswer, WholeAnswer
from gateway.web.context import WebContext
from tests.fakes.held import collecting_nothing, held
from tests.fakes.live_gateway import gateway_over_fake, generate_request
from tests.fakes.web_caller import FORMS, WebCaller
from tokenwire.v1 import gateway_pb2, tokenizer_pb2

KINDS = (WebContext, FramedAnswer, WholeAnswer, gateway_pb2.GenerateRequest, tokenizer_pb2.EmbedRequest)


async def check(form: str, *ends: tuple[str, str]) -> None:
    """Prompts, with the codes that answer them."""
    async with gateway_over_fake() as (tier, live):
        web = WebCaller(live.http, form)
        before = held(KINDS)
        for prompt, code in ends * 3:
            assert (await web.call("Generate", generate_request(prompt))).code == code
            assert (await web.call("Embed", tokenizer_pb2.EmbedRequest())).code == "INVALID_ARGUMENT"
            assert (await web.call("Generate", b"\xff")).code == "INVALID_ARGUMENT"
        async with web.open("Generate", generate_request("!hold a")) as messages:
            await anext(messages)
        await tier.until(lambda: not tier.num_running)
        for _ in range(10):
            await asyncio.sleep(0.01)
        tier.requests.clear()
        assert not held(KINDS) - before


ENDS = [("a b", "OK"), ("!bad a", "INVALID_ARGUMENT")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end[1])
def test_calls_and_messages_are_let_go(end: tuple[str, str], form: str) -> None:
    with collecting_nothing():
        asyncio.run(check(form, end))


def test_nothing_that_lasts_as_long_as_the_process_keeps_any_of_it() -> None:
    with collecting_nothing(whole_process=True):
        asyncio.run(check(FORMS[0], *ENDS))
