"""Which calls the transport tries again, as gRPC's service config says it.

A call is tried again where no server took it (no connection, or a server on its way out): once a server's headers are
there, gRPC repeats nothing, so nothing is generated twice. Overload is left to the caller, who is told when to come
back.
"""

import json
from typing import Any

SERVICE = "tokenwire.v1.GenerationService"
METHODS = (
    "Generate", "Chat", "Tokenize", "Detokenize", "ApplyChatTemplate", "CountTokens", "GetTokenizer", "Embed",
    "ListModels",
)  # fmt: skip
"""Those with one request. Sessions find a new stream by themselves."""
MOST_ATTEMPTS = 5
"""gRPC takes no more."""


def retry_options(max_attempts: int) -> list[tuple[str, Any]]:
    """Options of a channel that tries a call up to so many times. 1: never again. Raises ValueError."""
    if not isinstance(max_attempts, int) or not 1 <= max_attempts <= MOST_ATTEMPTS:
        raise ValueError(f"max_attempts {max_attempts!r} is not allowed: 1 to {MOST_ATTEMPTS}")
    if max_attempts == 1:
        return [("grpc.enable_retries", 0)]
    policy = {
        "maxAttempts": max_attempts,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],  # the latter: see `tokenwire.status.NEVER_TAKEN`
    }
    names = [{"service": SERVICE, "method": method} for method in METHODS]
    return [("grpc.service_config", json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]}))]
