"""OpenAI's POST /v1/chat/completions, streamed: events are counted and timed, and their text is not looked at.

For frontends under tens of thousands of tokens a second, where reading each event as JSON would make the client the
limit. That the answer is whole is judged by the count in its usage.
"""

import json
import re
import time
from typing import Any

from benchmarks.loadgen.http_stream import BadAnswer, ConnectionPool
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Work

TEXT = re.compile(rb'"content":"(?!")')
"""An event with new text, as every server of this API writes it."""


class CountedEvents:
    """Counts the events of one answer as its bytes come, split anywhere."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.first = b""
        """How the answer began, for the message of a refusal."""
        self._rest = b""
        self.usage: dict[str, Any] | None = None

    def on_body(self, data: bytes) -> None:
        """Bytes of the body came."""
        now_s = time.perf_counter()
        if not self.first:
            self.first = data[:500]
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n\n")
        if end < 0:
            self._rest = data
            return
        self._rest = data[end + 2 :]
        if self._rest:
            data = data[: end + 2]
        found = data.count(b'"content":"')
        if found == 1 and b'"content":""' not in data:
            self.record.pieces_s.append(now_s)
        elif found:
            self.record.pieces_s += [now_s] * len(TEXT.findall(data))
        if b'"usage":{' in data or b'"error"' in data or b"[DONE]" in data:
            self._read_end(data)
            self.record.ended_s = now_s

    def _read_end(self, data: bytes) -> None:
        for event in data.split(b"\n\n"):
            line = event.strip()
            if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
                continue
            message = json.loads(line[5:])
            if message.get("error"):
                self.record.error = f"error in the stream: {message['error']}"[:200]
            if message.get("usage"):
                self.usage = message["usage"]


class ChatClient:
    """One connection per request in flight, kept for the next.

    The chat template adds tokens of its own to a prompt: as many as the first answer shows. They are taken off the
    counts, so that a prompt counts as many tokens as were sent; an answer that differs is a failure.
    """

    def __init__(self, target: str, model: str, work: Work) -> None:
        host, _, port = target.rpartition(":")
        self._pool = ConnectionPool(host, int(port))
        self._work = work
        self.template_tokens: int | None = None
        """None before the first answer."""
        self._body = {
            "model": model, "max_tokens": work.output_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip

    async def open(self) -> None:
        """Connections are made when they are needed."""

    async def ask(self, prompt: list[int] | str, record: Record) -> None:
        events = CountedEvents(record)
        message = {"role": "user", "content": prompt}
        body = json.dumps({**self._body, "messages": [message]}, separators=(",", ":")).encode()
        status = await self._pool.post("/v1/chat/completions", body, events.on_body)
        if status != 200:
            raise BadAnswer(f"status {status}: {events.first.decode(errors='replace'):.160}")
        if events.usage is None:
            return
        if self.template_tokens is None:
            self.template_tokens = events.usage["prompt_tokens"] - self._work.prompt_tokens
        record.prompt_tokens = events.usage["prompt_tokens"] - self.template_tokens
        record.completion_tokens = events.usage["completion_tokens"]

    async def close(self) -> None:
        self._pool.close()
