"""A contender that runs: waits until it answers, asks it one question, reads its log. Knows no particular server."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.contenders.process import ServerProcess
from benchmarks.contenders.spec import Absent
from benchmarks.loadgen.clients import client_of
from benchmarks.loadgen.failures import in_one_line
from benchmarks.loadgen.loops import in_loop
from benchmarks.loadgen.measure import Target
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Work

QUESTION = "The capital of France is"
EXPECTED = "Paris"
"""Part of any right model's first words."""
ANSWER_TOKENS = 8
POLL_S = 0.05
PERMANENT = ("status 400", "status 422", "INVALID_ARGUMENT")
"""In a failure that waiting will not mend: the server answers, and refuses the question."""
START_TIMEOUT_S = 900.0


@dataclass
class Running:
    """One contender while it runs."""

    label: str
    target: Target
    process: ServerProcess | None
    """None for a program that the client starts itself."""
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    """What it was started with, for the record."""
    startup_s: float = 0.0
    """From the process's start until its first answer."""
    answer: str = ""
    """To the question."""
    phases_s: dict[str, float] = field(default_factory=dict)
    """Until each part of it was ready, where it says so."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """API → host:port, where there are several."""

    @property
    def right(self) -> bool:
        """Whether it answered the question as any right model does."""
        return EXPECTED in self.answer

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()


def until_answers(
    label: str,
    target: Target,
    process: ServerProcess | None,
    began_s: float,
    *,
    timeout_s: float = START_TIMEOUT_S,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[float, str]:
    """Seconds from `began_s` to the first token that came, and the answer to the question.

    Raises Absent, with what the process said last, when it ends or no answer comes in time.
    """
    told_s = time.perf_counter()
    while True:
        record = ask_once(target, QUESTION, 1)
        now_s = time.perf_counter()
        if not record.error:
            break
        if process is not None and process.status is not None:
            raise Absent(f"ended with status {process.status} while it started: {process.last_words()}")
        if process is None or any(word in record.error for word in PERMANENT):
            raise Absent(f"does not answer: {record.error}")
        if now_s - began_s > timeout_s:
            raise Absent(f"no answer within {timeout_s:.0f} s ({record.error}): {process.last_words()}")
        if now_s - told_s > 10:
            told_s = now_s
            say(f"  {label}: still starting ({now_s - began_s:.0f} s)")
        time.sleep(POLL_S)
    answer = ask_once(target, QUESTION, ANSWER_TOKENS)
    if answer.error:
        raise Absent(f"answers once, then not: {answer.error}")
    return record.ended_s - began_s, answer.text


def ask_once(target: Target, prompt: str, num_tokens: int) -> Record:
    """One request with a text; its failure is in `error`."""
    work = Work(prompt_tokens=1, output_tokens=num_tokens, timeout_s=60)
    record = Record(0, time.perf_counter())

    async def ask() -> None:
        client = client_of(target.api, target.address, target.model, work, target.dialect)
        await client.open()
        try:
            async with asyncio.timeout(work.timeout_s):
                await client.ask(prompt, record)
        finally:
            await client.close()

    try:
        in_loop(ask())
    except Exception as error:
        record.error = in_one_line(error)
    if not record.error and record.completion_tokens != num_tokens:
        record.error = f"{record.completion_tokens} tokens came, {num_tokens} were asked for"
    return record
