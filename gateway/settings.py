"""Settings of the gateway. Parsed once in `__main__`; everything below receives values, never the environment."""

import re
from dataclasses import dataclass

from tokenwire.settings import UpstreamSettings, WorkerSettings, bytes_of, setting

TARGET = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[\w.-]+):\d{1,5}")


def targets_of(text: str) -> str:
    """`"host:port,host:port"`, tidied; raises ValueError for anything else."""
    targets = [word.strip() for word in text.split(",") if word.strip()]
    if not targets or not all(TARGET.fullmatch(target) for target in targets):
        raise ValueError("one or more host:port, separated by commas")
    return ",".join(dict.fromkeys(targets))


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(UpstreamSettings, WorkerSettings):
    """What the gateway takes."""

    port: int = setting(50051, "gRPC port; 0 picks a free one", minimum=0, maximum=65535)
    http_port: int = setting(8080, "HTTP port; 0 picks a free one", minimum=0, maximum=65535)
    metrics_port: int = setting(9464, "Prometheus port; 0 turns it off", minimum=0, maximum=65535)
    tokenizer_targets: str = setting(
        "127.0.0.1:50052", "tokenizer tiers as host:port, separated by commas", parse=targets_of
    )
    sessions_per_target: int = setting(
        1,
        "sessions to each tokenizer target; where one has several workers, four times as many are likely to reach all",
        minimum=1,
        maximum=1024,
    )
    max_body_bytes: int = setting(
        4 * 2**20, "largest HTTP body accepted, with K/M/G suffix", minimum=1024, parse=bytes_of
    )
    max_prompts: int = setting(1024, "most prompts in one call", minimum=1, maximum=1024)
    max_concurrent_requests: int = setting(
        4096,
        "most outputs (prompts times choices) being generated at once; a call that needs more than is free is refused "
        "with a time to come back",
        minimum=1,
    )
    default_timeout_s: float = setting(0.0, "time limit of requests that bring none; 0: none", minimum=0)
