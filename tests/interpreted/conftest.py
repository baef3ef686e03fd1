"""Tests of the Triton kernels on the CPU, by Triton's interpreter.

Triton decides when it is first imported, and torch imports it, so these run in a process of their own that has
TRITON_INTERPRET set from its start: `tests/model_svc/model/test_triton_attention.py` starts it.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
