"""What this process may use of the machine: cores and memory, with a container's limits respected.

Reads the operating system only; knows nothing of models or devices.
"""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores this process may keep busy: its affinity, or the container's CPU quota where that is less; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)


def available_memory_bytes(cgroup: Path = CGROUP) -> int:
    """Memory that can be taken without swapping: the machine's, or what the container has left where that is less."""
    available = _machine_available_bytes()
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    if limit.isdigit() and used.isdigit():
        available = min(available, max(0, int(limit) - int(used) + _reclaimable_bytes(cgroup)))
    return available


def _machine_available_bytes() -> int:
    """MemAvailable, as the kernel reckons it; free pages alone where it does not say."""
    for line in _read(MEMINFO).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _reclaimable_bytes(cgroup: Path) -> int:
    """File pages counted as used that the kernel gives back on demand."""
    for line in _read(cgroup / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


def _read(path: Path) -> str:
    """The file's text; empty where there is no such limit on this machine."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
