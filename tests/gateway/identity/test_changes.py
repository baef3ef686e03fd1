"""What changes while a gateway runs: keys that come and go, tokens that expire, a first key."""

import asyncio
import json
import time

import pytest

from tests.fakes.entrances import ENTRANCES, asking, bearer, greet, http_completions, submitted
from tests.fakes.identities import Callers, Issuer
from tests.fakes.live_gateway import gateway_over_fake
from tokenwire.errors import TokenwireError, Unauthenticated
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import terminal_from_wire


def test_a_key_that_is_revoked_starts_nothing_more_on_an_open_session(callers: Callers, issuer: Issuer) -> None:
    """What runs goes on; a key that is added works without a restart; a file that makes no sense changes nothing."""

    async def main() -> None:
        async with asking(callers, issuer) as (tier, live):
            call = live.stub.Session(metadata=bearer(callers.keys["alice"]))
            await greet(call)
            await submitted(call, 1)
            running = tokenizer_pb2.TextRequest(text="!step a b")
            submit = tokenizer_pb2.Submit(handle=2, request=running)
            await call.write(tokenizer_pb2.SessionRequest(submits=[submit]))
            await tier.until(lambda: tier.num_running == 1)
            callers.whole["keys"] = [key for key in callers.whole["keys"] if key["name"] != "alice"]
            new = callers.add("dora")
            with pytest.raises(Unauthenticated):
                await submitted(call, 3)
            while True:
                tier.step()
                frame = await call.read()
                if frame.finishes:
                    assert terminal_from_wire(frame.finishes[0]).error is None
                    break
            call.cancel()
            callers.path.write_text("{")
            await http_completions(live, bearer(new))
            with pytest.raises(Unauthenticated):
                await http_completions(live, bearer(callers.keys["alice"]))

    asyncio.run(main())


def test_a_token_that_expires_starts_nothing_more_on_an_open_session(callers: Callers, issuer: Issuer) -> None:
    async def main() -> None:
        async with asking(callers, issuer, jwt_leeway_s=0.0) as (_, live):
            call = live.stub.Session(metadata=bearer(issuer.token(exp=time.time() + 1.5)))
            await greet(call)
            await submitted(call, 1)
            await asyncio.sleep(1.6)
            with pytest.raises(Unauthenticated) as caught:
                await submitted(call, 2)
            assert caught.value.reason == "TOKEN_EXPIRED"
            call.cancel()

    asyncio.run(main())


def test_the_first_key_shuts_everybody_else_out_at_once(callers: Callers) -> None:
    """Also who has a session open. A file that names no keys any more lets nobody in again."""
    root = callers.whole["keys"][2]
    callers.path.write_text(json.dumps({"tenants": {"alice": {"requests_per_s": 1000}}}))

    async def main() -> None:
        async with gateway_over_fake(identity_file=str(callers.path)) as (tier, live):
            for entrance in ENTRANCES:
                await entrance.call(live, ())
            call = live.stub.Session()
            await greet(call)
            await submitted(call, 1)
            assert (await live.http.get("/readyz")).json()["models"]
            callers.path.write_text(json.dumps({"keys": [root]}))
            with pytest.raises(Unauthenticated):
                await submitted(call, 2)
            call.cancel()
            for whole in ({"keys": [root]}, {"tenants": {}}):
                callers.path.write_text(json.dumps(whole))
                for entrance in ENTRANCES:
                    with pytest.raises(TokenwireError) as caught:
                        await entrance.call(live, ())
                    assert caught.value.reason == "NO_CREDENTIALS", entrance.name
                    if "keys" in whole:
                        await entrance.call(live, bearer(callers.keys["root"]))
                assert (await live.http.get("/readyz")).json() == {"status": "ready"}

    asyncio.run(main())
