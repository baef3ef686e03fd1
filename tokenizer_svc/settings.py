"""Settings of the tokenizer tier. Parsed once in `__main__`; everything below receives values, no environment."""

from dataclasses import dataclass

from tokenizer_svc.parsers.families import TOOL_FORMATS
from tokenizer_svc.parsers.reasoning import REASONING_TAGS
from tokenizer_svc.policies import POLICIES
from tokenwire.routing.settings import RoutingSettings
from tokenwire.routing.targets import Target, parse_targets, targets_of
from tokenwire.settings import WorkerSettings, setting


@dataclass(frozen=True, kw_only=True)
class TokenizerTierSettings(RoutingSettings, WorkerSettings):
    """Everything `python -m tokenizer_svc` accepts."""

    port: int = setting(50052, "gRPC port; 0 picks a free one", minimum=0, maximum=65535)
    metrics_port: int = setting(9465, "Prometheus port; 0 turns it off", minimum=0, maximum=65535)
    model: str = setting(
        "smollm2-135m-instruct",
        "model whose tokenizer to use: a name from `tokenwire models list`, a folder, a .gguf file or a hub id",
    )
    served_name: str = setting("", "name clients ask for (default: the last part of --model)")
    model_targets: str = setting(
        "127.0.0.1:50053",
        "model tiers to route to, separated by commas: host:port; dns:host:port, every address of that name; "
        "file:/path, a host:port per line; xds:///name, what gRPC's control plane tells",
        parse=targets_of,
    )
    routing_policy: str = setting("prefix-cache", "how a model tier is chosen for a request", choices=POLICIES)
    routing_load_guard: float = setting(
        0.5,
        "most load, in batches of sequences, that a cached prefix or a session's own replica may outweigh",
        minimum=0,
        maximum=100,
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
    tool_parser: str = setting(
        "auto",
        "how the model writes tool calls; auto: by the chat template; none: they are left in the text",
        choices=("auto", "none", *TOOL_FORMATS),
    )
    reasoning_parser: str = setting(
        "auto",
        "tags around reasoning, which is split from the text; auto: by the chat template; none: it is left there",
        choices=("auto", "none", *REASONING_TAGS),
    )
    max_requests: int = setting(
        4096, "requests that may run at once, each of their choices counted; one more is refused", minimum=1
    )
    max_held_requests: int = setting(
        1024,
        "requests, each choice counted, held until a model tier has room for them; one more is refused, or takes the "
        "place of one of a tenant that holds more than its share",
        minimum=1,
    )
    max_resumes: int = setting(
        3, "how often an output goes on at another model tier when its own is lost; 0: never", minimum=0, maximum=100
    )
    resume_wait_s: float = setting(
        15.0, "how long a request whose model tier was lost waits while none can take it", minimum=0
    )

    @property
    def targets(self) -> tuple[Target, ...]:
        """The model tiers, or where to look for them."""
        return parse_targets(self.model_targets)
