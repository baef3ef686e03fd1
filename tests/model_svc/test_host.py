import os
from pathlib import Path

import psutil

from model_svc.host import available_memory_bytes, usable_cores


def test_a_machine_without_limits(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    assert 0 < available_memory_bytes(tmp_path) <= psutil.virtual_memory().total


def test_a_containers_limits_count(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 40000\n")
    assert usable_cores(tmp_path) == 1
    assert available_memory_bytes(tmp_path) == 140_000


def test_a_containers_words_for_no_limit(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    assert available_memory_bytes(tmp_path) > 0
