"""All three tiers, real, in this process: mock engine, a small tokenizer, free loopback ports."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.live_gateway import LiveGateway, live_gateway
from tests.fakes.live_model_tier import LiveTier, live_model_tier
from tests.fakes.live_tokenizer_tier import LiveTokenizerTier, live_tokenizer_tier

VOCAB_SIZE = 600
"""Ids the mock engine draws from; the small tokenizer has about as many."""


@dataclass
class WholeStack:
    gateway: LiveGateway
    tokenizer: LiveTokenizerTier
    model: LiveTier

    async def until_idle(self) -> None:
        """Wait until nobody holds a request, in any tier, nor a block of the cache."""
        await self.gateway.until_idle()
        await self.tokenizer.until_idle()
        await self.model.until_idle()


@asynccontextmanager
async def whole_stack(
    folder: Path,
    *,
    gateway: dict[str, Any] | None = None,
    tokenizer: dict[str, Any] | None = None,
    **model: Any,
) -> AsyncIterator[WholeStack]:
    """Settings of the gateway, of the tokenizer tier, and, by name, of the model tier."""
    async with live_model_tier(model=str(folder), **{"mock_vocab_size": VOCAB_SIZE, **model}) as live_model:
        target = {"model_targets": f"127.0.0.1:{live_model.port}", **(tokenizer or {})}
        async with live_tokenizer_tier(folder, wait=False, **target) as live_tokenizer:
            await live_tokenizer.until_ready(1)
            async with live_gateway(live_tokenizer, **(gateway or {})) as live:
                yield WholeStack(live, live_tokenizer, live_model)
