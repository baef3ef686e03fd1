"""Many prompts at once with asyncio: python clients/python/many.py [HOST:PORT]."""

import asyncio
import sys

from tokenwire.client import AsyncClient

PROMPTS = ["Once upon a time", "The sea was", "In the year 3000,", "My favourite dish is"]


async def main(target: str) -> None:
    async with AsyncClient(target) as client:
        # One call, four prompts: the events carry `index`.
        outputs = await client.generate(*PROMPTS, max_tokens=16, temperature=0.8, seed=7).outputs()
        for output in outputs:
            print(f"{PROMPTS[output.index]}{output.text} ({output.terminal.reason.value})")


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"))
