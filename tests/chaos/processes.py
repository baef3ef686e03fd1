"""What the operating system and the metrics say that processes hold: descriptors, threads, requests, blocks.

Knows the process table and Prometheus' text. Does not know how the processes are started.
"""

import time
import urllib.error
import urllib.request
from dataclasses import dataclass

import psutil

from benchmarks.loadgen.processes import tree

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


def held(pid: int) -> Held:
    """Now, without those that end meanwhile. Raises psutil.NoSuchProcess for a process that is gone."""
    found = []
    for process in tree(pid):
        try:
            found.append((process.num_fds(), process.num_threads(), process.memory_info().rss))
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # the second: it has ended and was not waited for yet
            continue
    if not found:
        raise psutil.NoSuchProcess(pid)
    descriptors, threads, rss_bytes = map(sum, zip(*found, strict=True))
    return Held(descriptors, threads, rss_bytes, len(found))


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
