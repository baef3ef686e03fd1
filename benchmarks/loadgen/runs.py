"""Runs of requests against one open client: closed loops of N at a time, open loops of a rate. Knows no API."""

import asyncio
import time
from collections.abc import Callable
from itertools import count

from benchmarks.loadgen.arrivals import poisson
from benchmarks.loadgen.clients import LoadClient
from benchmarks.loadgen.failures import in_one_line
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Prompts

SETTLE_S = 0.1
"""Before the first request, so that connections which the server closed while prompts were made are not used again."""

Progress = Callable[[Record], None]
"""Told each request that has ended."""


class Runner:
    """Sends numbered requests; no number is used twice, so no prompt is either."""

    def __init__(self, client: LoadClient, prompts: Prompts, first_number: int = 0) -> None:
        self.client = client
        self.prompts = prompts
        self._numbers = count(first_number)

    async def closed(self, concurrency: int, num_requests: int, progress: Progress) -> list[Record]:
        """`num_requests` requests, `concurrency` at a time: one that ends lets the next begin."""
        if concurrency < 1 or num_requests < 1:
            raise ValueError("concurrency and the number of requests: 1 or more")
        prepared = [self._prepare() for _ in range(num_requests)]
        await asyncio.sleep(SETTLE_S)
        waiting = iter(prepared)
        records: list[Record] = []

        async def worker() -> None:
            for number, prompt in waiting:
                records.append(await self._ask(number, prompt, time.perf_counter(), progress))

        await asyncio.gather(*(worker() for _ in range(min(concurrency, num_requests))))
        return records

    async def open(self, rate: float, num_requests: int, seed: int, progress: Progress) -> list[Record]:
        """`num_requests` requests that arrive at random, `rate` a second, whatever became of those before."""
        offsets_s = list(poisson(rate, num_requests, seed))
        prepared = [self._prepare() for _ in offsets_s]
        began_s = time.perf_counter()
        tasks: list[asyncio.Task[Record]] = []
        async with asyncio.TaskGroup() as group:
            for offset_s, (number, prompt) in zip(offsets_s, prepared, strict=True):
                due_s = began_s + offset_s
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                tasks.append(group.create_task(self._ask(number, prompt, due_s, progress)))
        return [task.result() for task in tasks]

    def _prepare(self) -> tuple[int, list[int] | str]:
        number = next(self._numbers)
        return number, self.prompts.prompt(number)

    async def _ask(self, number: int, prompt: list[int] | str, due_s: float, progress: Progress) -> Record:
        """One request, judged. What its client raises is its error, not the run's."""
        record = Record(number, due_s, sent_s=time.perf_counter())
        try:
            async with asyncio.timeout(self.prompts.work.timeout_s):
                await self.client.ask(prompt, record)
        except TimeoutError:
            record.error = f"no end within {self.prompts.work.timeout_s:g} s"
        except Exception as error:
            record.error = in_one_line(error)
        if not record.ended_s:
            record.ended_s = time.perf_counter()
        record.judge(self.prompts.work)
        progress(record)
        return record
