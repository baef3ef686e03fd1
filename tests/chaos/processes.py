"""What the operating system and the metrics say that processes hold: descriptors, threads, requests, blocks.

Knows /proc and Prometheus' text. Does not know how the processes are started.
"""

import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

IDLE = {
    "gateway": ("open_streams",),
    "tokenizer": ("running_sequences", "held_requests"),
    "model": ("running_sequences", "queued_sequences", "queued_tokens", "kv_used_blocks"),
}
"""Metrics that are 0 where nothing is asked, by tier."""


@dataclass(frozen=True)
class Held:
    """What a process and its children hold."""

    descriptors: int
    threads: int
    rss_bytes: int
    processes: int


def children(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += children(int(child))
    return found


def held(pid: int) -> Held:
    """Now. Raises FileNotFoundError for a process that is gone."""
    pids = children(pid)
    fields = [
        dict(line.split(":", 1) for line in Path(f"/proc/{each}/status").read_text().splitlines()) for each in pids
    ]
    return Held(
        descriptors=sum(len(os.listdir(f"/proc/{each}/fd")) for each in pids),
        threads=sum(int(status["Threads"]) for status in fields),
        rss_bytes=sum(int(status["VmRSS"].split()[0]) * 1024 for status in fields),
        processes=len(pids),
    )


def scrape(port: int, timeout_s: float = 5.0) -> dict[str, float]:
    """Every sample without its tier's prefix; those with labels by their whole name. Raises OSError."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=timeout_s) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line.startswith("tokenwire_"))
    return {name.split("_", 2)[2]: float(value) for name, value in samples}


def not_idle(tier: str, port: int) -> dict[str, float]:
    """What a tier still holds of requests; empty: nothing."""
    found = scrape(port)
    return {name: found[name] for name in IDLE[tier] if found[name] != 0}


def until_idle(tier: str, port: int, limit_s: float = 20.0) -> None:
    """Wait until a tier holds nothing of requests. AssertionError with what it holds still after `limit_s`."""
    ends_s = time.monotonic() + limit_s
    while True:
        try:
            left: dict[str, float] | str = not_idle(tier, port)
        except (OSError, urllib.error.URLError) as error:
            left = repr(error)
        if not left:
            return
        assert time.monotonic() < ends_s, f"{tier} tier still holds {left}"
        time.sleep(0.1)
