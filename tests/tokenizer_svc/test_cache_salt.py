"""Who shares what was encoded before: those who share the cache of the model tiers, and nobody besides."""

import asyncio
from pathlib import Path

import pytest

from tests.fakes.live_tokenizer_tier import TextPeer, text_request
from tests.fakes.whole_stack import whole_stack

PROMPT = "Something long that nobody else should learn of. " * 20
OUTCOMES = ("hit", "part", "miss")
ALICE, SALTED, BOB, NOBODY = ("alice", ""), ("alice", "s"), ("bob", ""), ("", "")


@pytest.mark.parametrize(
    ("prefix_cache", "asked", "expected"),
    [
        ("shared", [ALICE, ALICE, BOB, NOBODY], ["miss", "hit", "hit", "hit"]),
        ("shared", [ALICE, SALTED, SALTED], ["miss", "miss", "hit"]),
        ("tenant", [ALICE, ALICE, BOB, NOBODY], ["miss", "hit", "miss", "miss"]),
        ("tenant", [SALTED, SALTED, ALICE, ("bob", "s")], ["miss", "hit", "miss", "miss"]),
    ],
)
def test_a_prompt_is_found_again_by_those_who_share_a_cache(
    trained_folder: Path, prefix_cache: str, asked: list[tuple[str, str]], expected: list[str]
) -> None:
    """Else the time that encoding takes would tell one tenant what another has sent."""

    async def main() -> list[str]:
        found = []
        async with whole_stack(trained_folder, prefix_cache=prefix_cache) as stack:
            tier, peer = stack.tokenizer, await TextPeer.open(stack.tokenizer)
            for handle, (tenant, salt) in enumerate(asked, 1):
                before = {each: tier.metric("encoding_cache_prompts_total", outcome=each) for each in OUTCOMES}
                request = text_request(PROMPT, tenant=tenant)
                request.cache_salt = salt
                request.options.stop.max_tokens = 1
                await peer.submit(handle, request)
                await peer.end(handle)
                after = {each: tier.metric("encoding_cache_prompts_total", outcome=each) for each in OUTCOMES}
                found += [each for each in OUTCOMES if after[each] > before[each]]
        return found

    assert asyncio.run(main()) == expected
