"""CPU time and memory of a server's tiers, read from the process table. Knows no server."""

import threading
from collections.abc import Mapping
from typing import Any

import psutil

SAMPLE_S = 0.25


def tree(pid: int, others: frozenset[int] = frozenset()) -> list[psutil.Process]:
    """The process and all below it, without the trees of `others`. Empty when it is gone."""
    found: list[psutil.Process] = []
    try:
        waiting = [psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return found
    while waiting:
        process = waiting.pop()
        try:
            waiting += [child for child in process.children() if child.pid not in others]
        except psutil.NoSuchProcess:
            continue  # it has ended meanwhile
        found.append(process)
    return found


def cpu_s(pid: int, others: frozenset[int] = frozenset()) -> float:
    """CPU seconds of a tree so far, ended children included."""
    total = 0.0
    for process in tree(pid, others):
        try:
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
        except psutil.NoSuchProcess:
            continue
    return total


def rss_bytes(pid: int, others: frozenset[int] = frozenset()) -> int:
    """Resident bytes of a tree; pages that processes share count for each of them."""
    total = 0
    for process in tree(pid, others):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


class TierMeter:
    """Measures named process trees while its `with` block runs. A tree that is below another counts once."""

    def __init__(self, tiers: Mapping[str, int]) -> None:
        self.tiers = dict(tiers)
        self._pids = frozenset(tiers.values())
        self._began_s: dict[str, float] = {}
        self._cpu_s: dict[str, float] = {}
        self._peak: dict[str, int] = dict.fromkeys(tiers, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="rss", daemon=True)

    def __enter__(self) -> "TierMeter":
        missing = [name for name, pid in self.tiers.items() if not psutil.pid_exists(pid)]
        if missing:
            raise ValueError(f"--tier: no such process: {', '.join(f'{name}={self.tiers[name]}' for name in missing)}")
        self._began_s = {name: cpu_s(pid, self._pids - {pid}) for name, pid in self.tiers.items()}
        if self.tiers:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for name, pid in self.tiers.items():
            self._cpu_s[name] = cpu_s(pid, self._pids - {pid}) - self._began_s[name]
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def figures(self, output_tokens: int) -> dict[str, dict[str, Any]]:
        """Per tier: CPU seconds, the same per 1,000 output tokens (None without tokens), and peak RSS in bytes."""
        return {
            name: {
                "cpu_s": round(self._cpu_s[name], 3),
                "cpu_s_per_1000_tokens": round(1000 * self._cpu_s[name] / output_tokens, 4) if output_tokens else None,
                "peak_rss_bytes": self._peak[name],
            }
            for name in self.tiers
        }

    def _sample(self) -> None:
        while True:
            for name, pid in self.tiers.items():
                self._peak[name] = max(self._peak[name], rss_bytes(pid, self._pids - {pid}))
            if self._stop.wait(SAMPLE_S):
                return
