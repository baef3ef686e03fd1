"""The tests for a GPU, where there is none."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_OUT = "qwen2_window or qwen3 or gemma or phi3 or ranks"
"""What takes long and is tried on a CPU by tests of its own; one family is enough to see that these fit the engine."""


def test_what_they_ask_of_the_engine_it_gives_on_a_cpu() -> None:
    """Those that need no GPU to make sense; the others skip."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/gpu", "-k", f"not ({LEFT_OUT})"]
    environment = os.environ | {"GPU_TESTS_DEVICE": "cpu"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None and int(passed[1]) > 30, result.stdout
