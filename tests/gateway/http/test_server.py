import asyncio
import time
from types import SimpleNamespace

import pytest

from tests.fakes.live_gateway import gateway_over_fake


def test_answers_have_the_date_of_their_day(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = time.time()
    monkeypatch.setattr("gateway.http.server.DATE_S", 0.01)
    monkeypatch.setattr("uvicorn.server.time", SimpleNamespace(time=lambda: now_s))

    async def main() -> None:
        nonlocal now_s
        async with gateway_over_fake() as (_, live):
            now_s = 86_400.0
            async with asyncio.timeout(20):
                while (await live.http.get("/healthz")).headers["date"] != "Fri, 02 Jan 1970 00:00:00 GMT":
                    await asyncio.sleep(0.01)

    asyncio.run(main())
