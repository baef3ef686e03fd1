"""Two ranks give the tokens of one, through the real engine process; none of them is ever left behind."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from model_svc.engine.engine import Engine
from model_svc.engine.events import Inbox
from model_svc.engine.limits import Limits
from model_svc.engine.sequence import Sequence
from model_svc.engine_client import EngineClient
from model_svc.metrics import EngineMetrics
from model_svc.settings import EngineSettings
from tests.fakes.step_loop import outputs
from tests.fakes.tiny_models import VOCAB_SIZE, write_model
from tests.fakes.tiny_runner import tiny_runner_of
from tokenwire.errors import FailedPrecondition
from tokenwire.requests import FinishReason, Terminal, TokenLogprob
from tokenwire.sampling import NEUTRAL, SamplingParams, StopParams

Folders = Callable[[str], str]

NUM_OUTPUTS = 12
RNG = random.Random(7)
LENGTHS = (40, 1, 17, 33, 9, 26, 3, 30)
PROMPTS = [[RNG.randrange(VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]
SAMPLED = replace(NEUTRAL, temperature=0.9, top_k=40, top_p=0.95, repetition_penalty=1.2)
IDS = count(1)


class Collector:
    """A SequenceSink that keeps everything, by handle."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.ends: dict[int, Terminal] = {}
        self.changed = asyncio.Event()

    def on_token(self, handle: int, token_id: int, logprob: TokenLogprob | None) -> None:
        self.tokens.setdefault(handle, []).append(token_id)

    def on_prompt_logprobs(self, handle: int, logprobs: list[TokenLogprob]) -> None:
        pass

    def on_end(self, handle: int, terminal: Terminal) -> None:
        self.ends[handle] = terminal

    def flush(self) -> None:
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return cache(lambda family: str(write_model(tmp_path_factory.mktemp("ranks") / family, family)))


def settings_of(folder: str, **more: object) -> EngineSettings:
    values = {"threads": 1, "block_size": 4, "max_batch_size": 8, "kv_memory": 16 * 2**20, "tensor_parallel": 2, **more}
    return EngineSettings(model=folder, device="cpu", dtype="float32", **values)  # type: ignore[arg-type]


@asynccontextmanager
async def engine_of(settings: EngineSettings) -> AsyncIterator[EngineClient]:
    client = EngineClient(settings, lambda up: None, EngineMetrics(CollectorRegistry()))
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def requests() -> list[Sequence]:
    """Greedy and sampled ones in turn; two choices of one of them."""
    made: list[Sequence] = []
    for index, prompt in enumerate([*PROMPTS, PROMPTS[0]]):
        sampling: SamplingParams = replace(SAMPLED if index % 2 == 0 else NEUTRAL, seed=index % len(PROMPTS))
        choice = index // len(PROMPTS)
        made.append(Sequence(next(IDS), list(prompt), len(prompt), sampling, StopParams(NUM_OUTPUTS), choice))
    return made


def tokens_of_one(folder: str) -> list[list[int]]:
    runner = tiny_runner_of(folder)
    engine = Engine(runner, Limits(8, 64))
    sequences = requests()
    engine.take(Inbox(sequences=sequences))
    while engine.has_work:
        engine.step()
    runner.close()
    return [outputs(sequence) for sequence in sequences]


async def tokens_of(client: EngineClient) -> tuple[list[list[int]], list[Terminal]]:
    sink = Collector()
    sequences = requests()
    for handle, sequence in enumerate(sequences):
        client.submit(sequence, sink, handle)
    await sink.until(lambda: len(sink.ends) == len(sequences))
    assert {terminal.reason for terminal in sink.ends.values()} == {FinishReason.LENGTH}
    return [sink.tokens[handle] for handle in range(len(sequences))], list(sink.ends.values())


def followers_of(pid: int | None) -> list[int]:
    """The processes that the engine process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def until_gone(*pids: int) -> None:
    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    async with asyncio.timeout(10):
        while any(map(runs, pids)):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_two_ranks_give_the_tokens_of_one_and_again_from_the_cache(folders: Folders, family: str) -> None:
    async def main() -> None:
        async with engine_of(settings_of(folders(family))) as client:
            assert client.info.device == "cpu (2 ranks)"
            (follower,) = followers_of(client.pid)
            assert (await tokens_of(client))[0] == wanted
            again, terminals = await tokens_of(client)
            assert again == wanted
            assert sum(terminal.usage.cached_tokens for terminal in terminals) > sum(LENGTHS) // 2
        await until_gone(follower)

    wanted = tokens_of_one(folders(family))
    asyncio.run(main())


def test_preemption_the_loss_of_a_rank_and_the_end_of_the_engine(
    folders: Folders, capfd: pytest.CaptureFixture[str]
) -> None:
    few_blocks = 40 * 512
    """Bytes of 40 blocks on each rank, where the batch wants over 60."""

    async def killed(client: EngineClient, victim: int) -> None:
        """Kill it while a step runs: the request ends with an error, and all ranks are gone."""
        sink = Collector()
        pids = [*followers_of(client.pid), client.pid or 0]
        client.submit(Sequence(next(IDS), [1], 1, replace(NEUTRAL, seed=0), StopParams(100)), sink, 1)
        await sink.until(lambda: len(sink.tokens.get(1, ())) > 3)
        os.kill(victim, signal.SIGKILL)
        await sink.until(lambda: bool(sink.ends))
        error = sink.ends[1].error
        assert error is not None and error.reason == "ENGINE_LOST"
        await until_gone(*pids)

    async def main() -> None:
        async with engine_of(settings_of(folders("llama"), kv_memory=few_blocks)) as client:
            assert client.info.num_blocks == 40
            assert (await tokens_of(client))[0] == wanted
            assert client.load.num_preemptions > 0

            (follower,) = followers_of(client.pid)
            await killed(client, follower)
            said = capfd.readouterr().err
            assert f"tensor-parallel rank 1 (process {follower}) was lost (exit status -9); the engine process" in said
            async with asyncio.timeout(60):
                while not client.epoch:
                    await asyncio.sleep(0.05)
            assert (await tokens_of(client))[0] == wanted
            await killed(client, client.pid or 0)

    wanted = tokens_of_one(folders("llama"))
    asyncio.run(main())


def test_followers_are_told_the_drafts(folders: Folders) -> None:
    """Prompts with something to repeat: most of what comes is drafted, and the tokens are those of one rank."""

    async def main() -> None:
        settings = settings_of(folders("llama"), speculation="ngram", speculation_adaptive=False)
        async with engine_of(settings) as client:
            sink = Collector()
            sequences = [
                Sequence(next(IDS), prompt * 2, 2 * len(prompt), replace(NEUTRAL, seed=0), StopParams(40))
                for prompt in PROMPTS
            ]  # fmt: skip
            for handle, sequence in enumerate(sequences):
                client.submit(sequence, sink, handle)
            await sink.until(lambda: len(sink.ends) == len(sequences))
            assert [sink.tokens[handle] for handle in range(len(sequences))] == wanted
            assert client.load.drafts.num_accepted > 20

    runner = tiny_runner_of(folders("llama"))
    engine = Engine(runner, Limits(8, 64))
    plain = [Sequence(next(IDS), p * 2, 2 * len(p), replace(NEUTRAL, seed=0), StopParams(40)) for p in PROMPTS]
    engine.take(Inbox(sequences=plain))
    while engine.has_work:
        engine.step()
    wanted = [outputs(sequence) for sequence in plain]
    runner.close()
    asyncio.run(main())


async def refusal(settings: EngineSettings) -> str:
    with pytest.raises(FailedPrecondition) as caught:
        async with engine_of(settings):
            pass
    assert caught.value.reason == "TENSOR_PARALLEL"
    return caught.value.message


def test_what_cannot_be_split_is_refused_by_the_engine_process(folders: Folders) -> None:
    said = asyncio.run(refusal(settings_of("any", engine="mock")))
    assert said == "tensor_parallel: 2 ranks need a model to split, which the mock engine has not"
    said = asyncio.run(refusal(settings_of(folders("llama"), tensor_parallel=3)))
    assert said == "tensor_parallel: 3 does not divide the model's 2 key-value heads"
