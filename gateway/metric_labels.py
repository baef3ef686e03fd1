"""The values that labels of the gateway's metrics can have, so that their series are there before the first event.

Prometheus takes no notice of a series' first value: what begins at 1 never rose. Knows nothing of requests.
"""

GENERATING = (
    "grpc.generate", "grpc.chat", "grpc.session", "grpc.model_infer", "grpc.model_stream_infer", "http.generate",
    "http.chat", "http.completions",
)  # fmt: skip
"""APIs whose answers have a first text."""
COMPUTING = (*GENERATING, "grpc.embed", "http.embeddings")
"""APIs that wait for a model tier."""
APIS = (
    *COMPUTING, "grpc.tokenize", "grpc.detokenize", "grpc.streamdetokenize", "grpc.applychattemplate",
    "grpc.counttokens", "grpc.gettokenizer", "grpc.listmodels", "grpc.model_metadata", "http.models",
)  # fmt: skip

OUTCOMES = ("ok", "internal", "unavailable", "unknown", "resource_exhausted", "deadline", "deadline_exceeded")
"""Those that the rules of deploy/prometheus tell apart; a client's own faults appear when they happen."""

HTTP_REFUSALS = (
    "head_too_large", "host_not_allowed", "invalid_request", "malformed_http", "malformed_path", "no_proxy",
    "request_timeout", "shutting_down", "too_many_bodies", "too_many_connections", "too_many_headers",
    "unsupported_http_version",
)  # fmt: skip
IDENTITY_REFUSALS = (
    "expired_credentials", "invalid_api_key", "invalid_token", "malformed_credentials", "no_credentials",
    "token_expired", "unknown_certificate",
)  # fmt: skip
LIMITS = ("requests_per_s", "tokens_per_min", "max_streams")
