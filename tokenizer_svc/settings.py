"""Settings of the tokenizer tier. Parsed once in `__main__`; everything below receives values, no environment."""

from dataclasses import dataclass

from tokenwire.settings import ServerSettings, setting


def targets_of(text: str) -> str:
    """Check a comma-separated list of `host:port`; returns it without blanks. Raises ValueError."""
    targets = [target.strip() for target in text.split(",")]
    for target in targets:
        host, _, port = target.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("host:port, several separated by commas, such as 127.0.0.1:50053")
    if len(set(targets)) != len(targets):
        raise ValueError("host:port, each once")
    return ",".join(targets)


@dataclass(frozen=True, kw_only=True)
class TokenizerTierSettings(ServerSettings):
    """Everything `python -m tokenizer_svc` accepts."""

    port: int = setting(50052, "gRPC port; 0 picks a free one", minimum=0, maximum=65535)
    metrics_port: int = setting(9465, "Prometheus port; 0 turns it off", minimum=0, maximum=65535)
    model: str = setting(
        "smollm2-135m-instruct",
        "model whose tokenizer to use: a name from `tokenwire models list`, a folder, a .gguf file or a hub id",
    )
    served_name: str = setting("", "name clients ask for (default: the last part of --model)")
    model_targets: str = setting(
        "127.0.0.1:50053", "model tiers to route to, host:port, several separated by commas", parse=targets_of
    )
    encode_window_ms: float = setting(
        0.0, "how long a prompt waits for others to be encoded with; 0: only those already there", minimum=0, maximum=20
    )
    encode_batch_size: int = setting(32, "most prompts encoded together", minimum=1, maximum=1024)
    encode_threads: int = setting(2, "batches encoded side by side", minimum=1, maximum=64)
    encoding_cache_bytes: int = setting(
        32 * 2**20,
        "memory for the token ids of texts and parts of prompts that were encoded before; 0: none are kept",
        minimum=0,
    )
    template_seconds: float = setting(2.0, "most time that a chat template may take", minimum=0.01, maximum=60)
    template_chars: int = setting(8 * 2**20, "longest prompt that a chat template may write, in characters", minimum=1)
    max_queued_requests: int = setting(1024, "prompts that may wait to be encoded; one more is refused", minimum=1)
    max_requests: int = setting(
        4096, "requests that may run at once, each of their choices counted; one more is refused", minimum=1
    )

    @property
    def targets(self) -> tuple[str, ...]:
        """The model tiers, one address each."""
        return tuple(self.model_targets.split(","))
