"""OpenAI's POST /v1/completions, streamed as server-sent events; the dialects of servers that differ from it."""

import json
import time
from collections.abc import Callable
from typing import Any

from benchmarks.loadgen.http_stream import BadAnswer, ConnectionPool
from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Work


def openai_body(model: str, work: Work) -> dict[str, Any]:
    """As vLLM and Tokenwire's gateway take it; `ignore_eos` is theirs, not OpenAI's."""
    return {
        "model": model, "max_tokens": work.output_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def transformers_body(model: str, work: Work) -> dict[str, Any]:
    """As `transformers serve` takes it: the end-of-sequence id is left out of a generation config of the request's."""
    config = {"do_sample": False, "max_new_tokens": work.output_tokens, "pad_token_id": 0}
    return {
        "model": model, "max_tokens": work.output_tokens, "stream": True, "generation_config": json.dumps(config),
    }  # fmt: skip


DIALECTS: dict[str, Callable[[str, Work], dict[str, Any]]] = {
    "openai": openai_body,
    "transformers": transformers_body,
}


class Events:
    """Reads one answer's server-sent events into its record."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.texts: list[str] = []
        self.rest = b""
        self.whole = bytearray()
        """The first bytes as they came, for the message of a refusal."""

    def on_body(self, data: bytes) -> None:
        """Bytes of the body came."""
        now_s = time.perf_counter()
        if len(self.whole) < 2000:
            self.whole += data[:2000]
        *events, self.rest = (self.rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    self._take(line[5:].strip(), now_s)

    def _take(self, data: bytes, now_s: float) -> None:
        self.record.ended_s = now_s
        if data == b"[DONE]":
            return
        message = json.loads(data)
        if message.get("error"):
            error = message["error"]
            self.record.error = (
                f"error in the stream: {error.get('message', error) if isinstance(error, dict) else error}"
            )
        choices = message.get("choices")
        if choices and choices[0].get("text"):
            self.record.piece(now_s)
            self.texts.append(choices[0]["text"])
        if usage := message.get("usage"):
            self.record.prompt_tokens = usage["prompt_tokens"]
            self.record.completion_tokens = usage["completion_tokens"]


class CompletionsClient:
    """One connection per request in flight, kept for the next."""

    def __init__(self, target: str, model: str, work: Work, dialect: str = "openai") -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"--dialect {dialect}: one of {', '.join(DIALECTS)}")
        host, _, port = target.removeprefix("http://").rstrip("/").partition(":")
        self._pool = ConnectionPool(host, int(port or 80))
        self._body = DIALECTS[dialect](model, work)

    async def open(self) -> None:
        """Connections are made when they are needed."""

    async def ask(self, prompt: list[int] | str, record: Record) -> None:
        events = Events(record)
        body = json.dumps({**self._body, "prompt": prompt}, separators=(",", ":")).encode()
        status = await self._pool.post("/v1/completions", body, events.on_body)
        if status != 200:
            raise BadAnswer(f"status {status}: {bytes(events.whole).decode(errors='replace'):.160}")
        record.text = "".join(events.texts)

    async def close(self) -> None:
        self._pool.close()
