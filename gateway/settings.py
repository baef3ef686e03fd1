"""Settings of the gateway. Parsed once in `__main__`; everything below receives values, never the environment."""

from dataclasses import dataclass

from gateway.http.cors import origins_of
from gateway.identity.settings import IdentitySettings
from gateway.limits.settings import LimitSettings
from tokenwire.routing.settings import RoutingSettings
from tokenwire.routing.targets import targets_of
from tokenwire.settings import SettingError, WorkerSettings, bytes_of, setting


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(LimitSettings, IdentitySettings, RoutingSettings, WorkerSettings):
    """What the gateway takes."""

    port: int = setting(50051, "gRPC port; 0 picks a free one", minimum=0, maximum=65535)
    http_port: int = setting(8080, "HTTP port; 0 picks a free one", minimum=0, maximum=65535)
    metrics_port: int = setting(9464, "Prometheus port; 0 turns it off", minimum=0, maximum=65535)
    tokenizer_targets: str = setting(
        "127.0.0.1:50052",
        "tokenizer tiers, separated by commas: host:port; dns:host:port, every address of that name; file:/path, a "
        "host:port per line; xds:///name, what gRPC's control plane tells",
        parse=targets_of,
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
    max_unfinished_bytes: int = setting(
        256 * 2**20,
        "most bytes of HTTP bodies that are not whole yet, all together in one worker, with K/M/G suffix; at least "
        "max-body-bytes",
        minimum=1024,
        parse=bytes_of,
    )
    body_timeout_s: float = setting(60.0, "seconds that the body of an HTTP request may take to arrive", minimum=0.001)
    max_header_bytes: int = setting(
        32 * 2**10, "largest head of an HTTP request: its line and header fields", minimum=1024, parse=bytes_of
    )
    max_headers: int = setting(100, "most header fields of an HTTP request", minimum=8)
    header_timeout_s: float = setting(
        10.0, "seconds that the head of an HTTP request may take to arrive, the first from the connection's start on",
        minimum=0.001,
    )  # fmt: skip
    idle_timeout_s: float = setting(75.0, "seconds that an HTTP connection may be idle between requests", minimum=0.001)
    max_connections: int = setting(10_000, "most HTTP connections open at once", minimum=1)
    max_prompts: int = setting(
        1024,
        "most prompts in one call, and texts or sequences to tokenize, detokenize or count",
        minimum=1,
        maximum=1024,
    )
    max_concurrent_requests: int = setting(
        4096,
        "most outputs (prompts times choices) being generated at once; a call that needs more than is free is refused "
        "with a time to come back",
        minimum=1,
    )
    stream_keep_alive_s: float = setting(
        15.0,
        "seconds after which an answer streamed over HTTP that is silent gets a comment, and looks as often; 0: never",
        minimum=0,
    )
    cors_origins: str = setting(
        "",
        "origins of web pages that may use the HTTP port, such as https://app.example, separated by commas; *: all; "
        "empty: none",
        parse=origins_of,
    )
    trace_callers: str = setting(
        "known",
        "whose W3C `traceparent` decides whether a trace is kept: known, callers that showed a key, a token or a "
        "certificate of the identity file; all; none. What others send decides nothing",
        choices=("known", "all", "none"),
    )
    page: bool = setting(True, "a web page at / of the HTTP port: a chat, and what the tiers are doing")
    default_timeout_s: float = setting(0.0, "time limit of requests that bring none; 0: none", minimum=0)

    def __post_init__(self) -> None:
        """Raises SettingError for settings that contradict each other."""
        if self.max_unfinished_bytes < self.max_body_bytes:
            raise SettingError(
                f"--max-unfinished-bytes={self.max_unfinished_bytes}: must be at least {self.max_body_bytes}, "
                "so that one body of --max-body-bytes fits"
            )

    @property
    def asks_who(self) -> bool:
        """As its base; by key and token too. Raises FailedPrecondition for an identity file that cannot be used."""
        if self.tls_client_ca or self.jwt_jwks:
            return True
        keyring = self.keyring()
        return keyring is not None and keyring.asks

    @property
    def ways_to_ask(self) -> str:
        """As its base."""
        return "ask for keys or tokens with --identity-file or --jwt-jwks, for client certificates with --tls-client-ca"
