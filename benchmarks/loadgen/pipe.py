"""A model in process: a program that reads one JSON request a line and answers with the times of its tokens.

In: {"prompt": [ids] or text, "max_tokens": n}. Out, in the same order, {"piece_s": [seconds after the request was
read], "prompt_tokens": n, "completion_tokens": n, "text": text} or {"error": text}. One request at a time.
"""

import asyncio
import json
import shlex
import time
from typing import Any

from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Work

MAX_LINE_BYTES = 2**20


class PipeClient:
    """Starts the program, or takes a running one's pipes."""

    def __init__(self, target: str, model: str, work: Work, process: asyncio.subprocess.Process | None = None) -> None:
        self._command = shlex.split(target)
        self._work = work
        self._process = process
        self._lock = asyncio.Lock()

    async def open(self) -> None:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MAX_LINE_BYTES,
                start_new_session=True,  # a terminal's Ctrl-C is for this process, which then closes the pipe
            )  # fmt: skip

    @property
    def tiers(self) -> dict[str, int]:
        """The program's process, for its CPU time and memory."""
        return {"model": self._process.pid} if self._process is not None else {}

    async def ask(self, prompt: list[int] | str, record: Record) -> None:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        async with self._lock:
            self._process.stdin.write(
                json.dumps({"prompt": prompt, "max_tokens": self._work.output_tokens}).encode() + b"\n"
            )
            began_s = time.perf_counter()
            line = await self._process.stdout.readline()
        if not line:
            raise EOFError("the program ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        for piece_s in answer["piece_s"]:
            record.piece(began_s + piece_s)
        record.ended_s = record.pieces_s[-1] if record.pieces_s else time.perf_counter()
        record.prompt_tokens, record.completion_tokens = answer["prompt_tokens"], answer["completion_tokens"]
        record.text = answer["text"]

    async def close(self) -> None:
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
