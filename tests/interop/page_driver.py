"""The gateway's page in Chromium, driven by a program, over a tokenizer tier that echoes."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from tests.fakes.entrances import asking
from tests.fakes.identities import Callers, Issuer
from tests.fakes.live_gateway import live_gateway
from tests.fakes.tokenizer_tier import FakeTokenizerTier, fake_tokenizer_tier
from tests.interop.environments import node_with, not_to_be_had
from tokenwire.v1 import common_pb2, tokenizer_pb2

PROGRAMS = Path(__file__).parent / "programs"
PACKAGES = ("@sparticuz/chromium@147.0.0", "axe-core@4.10.3", "puppeteer-core@24.43.1")
TIME_LIMIT_S = 240
NO_BROWSER = 3


def drive(program: str, place: Path) -> tuple[FakeTokenizerTier, dict[str, Any]]:
    """The tier, and what each scenario of the program found; fails where one of them did. `place`: an empty folder."""
    node, folder = node_with("page", *PACKAGES)
    callers, issuer = Callers.write(place / "identities.json"), Issuer(place / "jwks.json")
    tier, found = asyncio.run(driven(PROGRAMS / program, node, folder, callers, issuer))
    failed = {name: each["failed"] for name, each in found.items() if "failed" in each}
    assert not failed, "\n".join(map(": ".join, failed.items()))
    return tier, found


async def tier_load(request: Any, context: Any) -> Any:
    load = common_pb2.Load(
        running=5, queued=2, queued_tokens=300, kv_blocks_used=600, kv_blocks_total=2400, kv_blocks_cached=1200,
        max_batch_size=16, step=9,
    )  # fmt: skip
    tier = tokenizer_pb2.ModelTierLoad(target="10.0.0.1:50053", state="ready", epoch=7, load=load)
    return tokenizer_pb2.GetTierLoadResponse(running=7, held=3, oldest_held_us=1_500_000, model_tiers=[tier])


async def driven(
    program: Path, node: Path, folder: Path, callers: Callers, issuer: Issuer
) -> tuple[FakeTokenizerTier, Any]:
    """The tier, and what the program found."""
    async with fake_tokenizer_tier() as tier, live_gateway(tier) as live, asking(callers, issuer) as (_, locked):
        tier.tier_load = tier_load
        arguments = [folder, live.http_url, locked.http_url, callers.keys["root"]]
        arguments += [callers.path, shutil.which("chromium") or ""]
        process = await asyncio.create_subprocess_exec(
            node, program, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(TIME_LIMIT_S):
                said, complaints = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode == NO_BROWSER:
            not_to_be_had(f"Chromium does not start here: {complaints.decode()[-300:]}")
        assert process.returncode == 0, complaints.decode()
        feed = live.server._feed
        assert feed is not None
        await live.until(lambda: feed.num_viewers == 0)
        return tier, json.loads(said)
