"""Speculation through the whole model tier: what a request says of it, what the settings say, and what is counted."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers

from model_svc.engine.__main__ import drafts_of
from model_svc.engine.drafting import UNDRAFTED, DraftCounts, DraftLimits
from model_svc.engine.mock_runner import MockRunner
from model_svc.settings import EngineSettings
from tests.fakes.live_model_tier import RawSession, live_model_tier, token_request
from tests.fakes.runner import runner_info
from tests.fakes.tiny_models import VOCAB_SIZE, write_model

REPEATING = [5, 6, 7, 8] * 5


async def served(folder: Path, default: str, asked: bool | None) -> tuple[list[int], DraftCounts]:
    """The tokens of one request, and what was drafted for it."""
    async with live_model_tier(
        model=str(folder), engine="torch", device="cpu", dtype="float32", threads=1, kv_memory=2**20, max_batch_size=2,
        speculation=default, speculation_adaptive=False,
    ) as live:  # fmt: skip
        session = await RawSession.open(live.stub)
        request = token_request(REPEATING, max_tokens=40)
        request.options.sampling.temperature = 0.0
        if asked is not None:
            request.options.speculation = asked
        await session.submit({1: request})
        await session.read_until_finished(1)
        return session.tokens[1], live.tier.engine.load.drafts


def test_a_request_switches_it_on_and_off_and_the_tokens_are_the_same(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "llama", "llama")
    words = {f"word{number}": number for number in range(VOCAB_SIZE)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="word0")).save(str(folder / "tokenizer.json"))

    async def main() -> None:
        plain, counts = await served(folder, "off", None)
        assert counts.num_drafted == 0 and counts.undrafted[UNDRAFTED.index("off")] > 0
        for default, asked in (("off", True), ("ngram", None), ("ngram", False)):
            tokens, counts = await served(folder, default, asked)
            assert tokens == plain
            assert (counts.num_accepted > 0) == (asked is not False)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("settings", "device", "wanted"),
    [
        ({}, "cpu", DraftLimits(8, True, True, False)),
        ({}, "cuda:0", DraftLimits(8, False, True, True)),
        ({"draft_model": "small"}, "cuda:0", DraftLimits(8, True, True, True)),
        ({"speculation": "draft", "draft_model": "small"}, "cpu", DraftLimits(8, True, False, True)),
        ({"speculation": "both", "speculation_length": 3}, "cpu", DraftLimits(3, True, True, True)),
        ({"speculation": "off", "speculation_adaptive": False}, "cpu", DraftLimits(8, False, True, True, False)),
    ],
)
def test_what_the_settings_mean(settings: dict[str, object], device: str, wanted: DraftLimits) -> None:
    info = replace(runner_info(), takes_drafts=True, device=device)
    assert drafts_of(EngineSettings(**settings), info) == wanted  # type: ignore[arg-type]


def test_the_mock_engine_drafts_nothing() -> None:
    settings = EngineSettings(engine="mock", speculation="ngram")
    assert drafts_of(settings, MockRunner(settings).info).max_drafts == 0
