"""The tests for a GPU, where there is none."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEED_NO_CUDA = "llama or seeds or not_numbers or memory or bf16"


def test_what_they_ask_of_the_engine_it_gives_on_a_cpu() -> None:
    """Those that need neither CUDA graphs nor CUDA's allocator."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/gpu/test_engine.py", "-k", NEED_NO_CUDA]
    environment = os.environ | {"GPU_TESTS_DEVICE": "cpu"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "9 passed" in result.stdout and "skipped" not in result.stdout, result.stdout
