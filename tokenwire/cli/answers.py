"""Shows what a request gives: text as it comes, whole outputs, JSON, and how fast it was. Makes no requests."""

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import click

from tokenwire.client import Finished, Output, Stream, TextDelta, TokenLogprob
from tokenwire.visible import visible


@dataclass
class Speed:
    """Times one output as its reader sees it."""

    began_s: float = field(default_factory=time.perf_counter)
    first_s: float | None = None
    last_s: float = 0.0
    num_first: int = 0
    """Tokens of the first event: they came at once and say nothing about the pace."""
    num_tokens: int = 0

    def add(self, num_tokens: int) -> None:
        """Take note that this many tokens came now."""
        if num_tokens == 0:
            return
        self.last_s = time.perf_counter()
        if self.first_s is None:
            self.first_s, self.num_first = self.last_s, num_tokens
        self.num_tokens += num_tokens

    @property
    def first_token_ms(self) -> float | None:
        """Time to first token; None when none came."""
        return None if self.first_s is None else (self.first_s - self.began_s) * 1e3

    @property
    def tokens_per_s(self) -> float | None:
        """Pace after the first event; None when there was none after it."""
        if self.first_s is None or self.last_s <= self.first_s:
            return None
        return (self.num_tokens - self.num_first) / (self.last_s - self.first_s)

    def __str__(self) -> str:
        first, pace = self.first_token_ms, self.tokens_per_s
        words = ["1 token" if self.num_tokens == 1 else f"{self.num_tokens} tokens"]
        words += [f"first after {first:.0f} ms"] if first is not None else []
        words += [f"{pace:.1f} tokens/s"] if pace is not None else []
        return ", ".join(words)


def for_terminal(text: str) -> str:
    """A server's text, as it is for a pipe or a file; on a terminal what would steer that is written out."""
    return visible(text, keep="\n\t") if sys.stdout.isatty() else text


def show_stream(stream: Stream, shown: list[str] | None = None) -> tuple[Output, Speed]:
    """Print the text of a stream of one output as it comes, its reasoning dimmed, and append the text to `shown`.

    Raises what cut it short, after the text that came.
    """
    speed = Speed()
    shown = [] if shown is None else shown
    thinking = False
    for event in stream:
        if isinstance(event, TextDelta):
            speed.add(event.num_tokens)
            if event.reasoning:
                click.secho(for_terminal(event.reasoning), nl=False, dim=True)
                thinking = True
            if event.text:
                text = for_terminal(event.text)
                click.echo(f"\n{text}" if thinking else text, nl=False)
                thinking = False
            shown.append(event.text)
        elif isinstance(event, Finished):
            click.echo()
    (output,) = stream.outputs()
    for call in output.tool_calls:
        click.secho(for_terminal(f"(calls {call.name} {call.arguments})"), dim=True)
    if output.error is not None:
        raise output.error
    return output, speed


def show_outputs(outputs: list[Output]) -> None:
    """Print whole outputs under a line that says which is which. Raises the first error, after all outputs."""
    for output in outputs:
        click.secho(f"--- prompt {output.index}, choice {output.choice}: {output.terminal.reason.value}", dim=True)
        click.echo(for_terminal(output.text))
    for output in outputs:
        if output.error is not None:
            raise output.error


def show_json(outputs: list[Output]) -> None:
    """Print outputs as one JSON object. An output cut short carries `error`."""
    click.echo(json.dumps({"outputs": [as_json(output) for output in outputs]}, ensure_ascii=False))


def as_json(output: Output) -> dict[str, Any]:
    """One output as JSON values."""
    usage, error = output.terminal.usage, output.error
    found: dict[str, Any] = {
        "index": output.index,
        "choice": output.choice,
        "text": output.text,
        "finish_reason": output.terminal.reason.value,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
    }
    if output.reasoning:
        found["reasoning"] = output.reasoning
    if output.tool_calls:
        found["tool_calls"] = [
            {"id": call.id, "name": call.name, "arguments": call.arguments} for call in output.tool_calls
        ]
    if output.token_ids:
        found["token_ids"] = list(output.token_ids)
    if output.logprobs:
        found["logprobs"] = [
            {**_token_json(token), "text_offset": token.text_offset, "top": list(map(_token_json, token.top))}
            for token in output.logprobs
        ]
    if error is not None:
        found["error"] = {"reason": error.reason, "message": error.message}
    return found


def _token_json(token: TokenLogprob) -> dict[str, Any]:
    return {"token_id": token.token_id, "text": token.text, "logprob": token.logprob}
