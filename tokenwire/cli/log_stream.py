"""One tidy stream out of what three tiers say: each line under its tier's name, coloured on a terminal."""

import json
import re
import sys

import click

from tokenwire.cli.saying import say
from tokenwire.cutting import cut

COLOURS = {"gateway": "cyan", "tokenizer": "magenta", "model": "green"}
READABLE = re.compile(
    r"(?P<clock>\d\d:\d\d:\d\d\.\d{3}) (?P<level>\w+) +(?P<tier>gateway|tokenizer|model) +(?P<rest>.*)"
)
"""A line of `tokenwire.logs.ReadableFormatter`, which names its tier itself."""


def show_line(tier: str, line: str) -> None:
    """Print one line on standard error. A line of JSON passes as it is, so that the stream can be parsed."""
    say(line if line.startswith("{") else tidy(tier, line), err=True)


def cut_line(tier: str, line: str, num_dropped: int) -> str:
    """A line whose end was dropped, with how many bytes that were; what began as JSON is an event of its own."""
    if not line.startswith("{"):
        return f"{line} … ({num_dropped} bytes more)"
    message = "a line of this tier was too long, and cut"
    event = {"level": "warning", "tier": tier, "message": message, "began": cut(line), "dropped_bytes": num_dropped}
    return json.dumps(event)


def tidy(tier: str, line: str, *, colour: bool | None = None) -> str:
    """`gateway   12:00:01.123 info    request finished`, whatever the line came from."""
    name = f"{tier:<9}"
    match = READABLE.fullmatch(line)
    text = line if match is None else f"{match['clock']} {match['level']:<7} {match['rest']}"
    if not (sys.stderr.isatty() if colour is None else colour):
        return f"{name} {text}"
    if match is not None and match["level"] in ("warning", "error"):
        text = click.style(text, fg="yellow" if match["level"] == "warning" else "red")
    return f"{click.style(name, fg=COLOURS.get(tier.split('-')[0]))} {text}"
