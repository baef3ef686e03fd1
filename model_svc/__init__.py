"""The model tier: token IDs in, token IDs out, one engine per device group."""

import os

# The engine process is started by fork and exec at once, so gRPC need not prepare for forks, nor warn that it did not.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
