"""What the tokenizer tier's metrics say where several workers are read as one."""

import os
import subprocess
import sys
from pathlib import Path

from tokenwire.telemetry import merged_registry


def test_model_tiers_that_each_worker_knows_are_counted_once(tmp_path: Path) -> None:
    for ready, num_blocks in ((2, 70), (1, 90)):
        code = (
            "from tokenizer_svc.metrics import TokenizerMetrics\n"
            f"TokenizerMetrics().show_replicas(['ready'] * {ready}, {num_blocks})\n"
        )
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    value = merged_registry(tmp_path).get_sample_value
    assert value("tokenwire_tokenizer_model_replicas", {"state": "ready"}) == 2
    assert value("tokenwire_tokenizer_model_replicas", {"state": "ejected"}) == 0
    assert value("tokenwire_tokenizer_known_cached_blocks") == 90
