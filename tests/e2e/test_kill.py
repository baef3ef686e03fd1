"""kill -9 of one of two model tiers under 32 streams: all go on where they were cut."""

import asyncio
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.replicated_stack import ReplicatedStack, replicated_stack
from tokenwire.client import AsyncClient, Finished, TextDelta
from tokenwire.requests import FinishReason, Terminal, TokenLogprob

pytestmark = pytest.mark.model

NUM_STREAMS = 32
WORDS = "( [a-z]{1,9}){40}[.]"
BEGINNING = "( [a-z]{0,9}){1,40}"
"""What 16 tokens of it can be."""
RESUMED = "request goes on at another model tier"


@dataclass
class Stream:
    """What came of one stream, and how much of it before the kill."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    terminal: Terminal | None = None
    num_before: int | None = None
    killed_s: float | None = None
    pause_s: float = 0.0
    """From the kill until something came."""

    def add(self, event: TextDelta | Finished) -> None:
        if self.killed_s is not None and not self.pause_s:
            self.pause_s = time.monotonic() - self.killed_s
        if isinstance(event, Finished):
            self.terminal = event.terminal
        else:
            self.text += event.text
            self.token_ids += event.token_ids
            self.logprobs += event.logprobs

    @property
    def end(self) -> Terminal:
        assert self.terminal is not None
        return self.terminal


def prompt_of(number: int) -> str:
    return f"Story number {number}. Once upon a time there were {number} towns, and in each of them"


async def run(stack: ReplicatedStack, options: list[dict[str, Any]], *, kill_after: int | None = None) -> list[Stream]:
    """All streams at once; with `kill_after` one model tier is killed once most have so many tokens."""
    streams = [Stream() for _ in options]

    async def read(client: AsyncClient, number: int) -> None:
        async for event in client.generate(prompt_of(number), return_token_ids=True, **options[number]):
            streams[number].add(event)

    async with AsyncClient(stack.target) as client:
        tasks = [asyncio.create_task(read(client, number)) for number in range(len(options))]
        if kill_after is not None:
            while sum(len(stream.token_ids) >= kill_after for stream in streams) < len(streams) * 3 // 4:
                await asyncio.sleep(0.001)
            stack.models[0].kill()
            for stream in streams:
                stream.num_before, stream.killed_s = len(stream.token_ids), time.monotonic()
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
    return streams


def options_of(number: int, max_tokens: int) -> dict[str, Any]:
    """Greedy and sampled, with penalties, with log-probabilities, with a stop string: by turns."""
    options: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": True, "temperature": 0.0}
    match number % 4:
        case 1:
            options |= {"temperature": 0.9, "seed": number, "top_p": 0.9}
        case 2:
            options |= {"frequency_penalty": 0.7, "repetition_penalty": 1.2, "temperature": 0.8, "seed": number}
        case 3:
            options |= {"logprobs": 2, "stop": ["\n\n\n", "The end"], "min_tokens": max_tokens // 2}
    return options


def check_equal(found: list[Stream], expected: list[Stream], *, tolerance: float) -> None:
    for number, (got, want) in enumerate(zip(found, expected, strict=True)):
        assert got.token_ids == want.token_ids and got.text == want.text, number
        assert (got.end.reason, got.end.stop_string) == (want.end.reason, want.end.stop_string), number
        assert replace(got.end.usage, cached_tokens=0) == replace(want.end.usage, cached_tokens=0), number
        assert len(got.logprobs) == len(want.logprobs)
        for one, other in zip(got.logprobs, want.logprobs, strict=True):
            assert (one.token_id, one.text, one.text_offset) == (other.token_id, other.text, other.text_offset)
            assert one.logprob == pytest.approx(other.logprob, abs=tolerance)


def report(what: str, stack: ReplicatedStack, streams: list[Stream], resumed: int) -> None:
    pause_ms = max(stream.pause_s for stream in streams) * 1e3
    num_before = [stream.num_before or 0 for stream in streams]
    print(
        f"\n{what}: {resumed} of {len(streams)} streams went on after {min(num_before)} to {max(num_before)} tokens; "
        f"the first token after the kill came at the latest after {pause_ms:.0f} ms"
    )


def test_the_mock_engine_gives_the_text_of_an_undisturbed_run(model_folder: Path) -> None:
    async def main() -> None:
        options = [options_of(number, 64) for number in range(NUM_STREAMS)]
        undisturbed = await run(stack, options)
        streams = await run(stack, options, kill_after=8)
        check_equal(streams, undisturbed, tolerance=0.0)
        resumed = stack.num_logged(RESUMED)
        assert resumed == NUM_STREAMS // 2
        report("mock engine", stack, streams, resumed)

    with replicated_stack(model_folder, "--engine", "mock") as stack:
        asyncio.run(main())


def test_a_model_in_fp32_gives_the_text_of_an_undisturbed_run(model_folder: Path) -> None:
    async def main() -> None:
        options = [options_of(number, 16) for number in range(NUM_STREAMS)]
        for number in range(0, NUM_STREAMS, 2):
            options[number]["regex"] = WORDS
        undisturbed = await run(stack, options)
        streams = await run(stack, options, kill_after=4)
        check_equal(streams, undisturbed, tolerance=1e-3)
        for stream in streams[::2]:
            assert re.fullmatch(BEGINNING, stream.text), stream.text
        resumed = stack.num_logged(RESUMED)
        assert resumed > NUM_STREAMS // 4
        report("fp32", stack, streams, resumed)

    with replicated_stack(model_folder, "--dtype", "float32", "--threads", "1") as stack:
        asyncio.run(main())


def test_in_bf16_there_is_no_gap_and_no_repeat(model_folder: Path) -> None:
    async def main() -> None:
        num_tokens = 32
        options = [
            {"max_tokens": num_tokens, "ignore_eos": True, "temperature": 0.7, "seed": number, "logprobs": 0}
            for number in range(NUM_STREAMS)
        ]
        streams = await run(stack, options, kill_after=4)
        resumed = stack.num_logged(RESUMED)
        assert resumed > NUM_STREAMS // 4
        async with AsyncClient(stack.target) as client:
            prompts = [list(e.token_ids) for e in await client.tokenize(*map(prompt_of, range(NUM_STREAMS)))]
            texts = await client.detokenize(*(stream.token_ids for stream in streams))
        for stream, prompt, text in zip(streams, prompts, texts, strict=True):
            assert stream.end.reason is FinishReason.LENGTH
            assert (stream.end.usage.prompt_tokens, stream.end.usage.completion_tokens) == (len(prompt), num_tokens)
            assert len(stream.token_ids) == len(stream.logprobs) == num_tokens
            assert stream.text == text, "one text, from the first token to the last"
            assert [t.token_id for t in stream.logprobs] == stream.token_ids
            offsets = [t.text_offset for t in stream.logprobs]
            assert offsets == sorted(offsets) and offsets[-1] <= len(text)
        report("bf16", stack, streams, resumed)

    with replicated_stack(model_folder, "--dtype", "bfloat16", "--threads", "1") as stack:
        asyncio.run(main())
