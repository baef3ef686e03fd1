"""What this tier measures. All per request or per frame, nothing per token."""

from collections import Counter
from collections.abc import Iterable
from functools import cache

from prometheus_client import CollectorRegistry

from tokenizer_svc.prompt_encoder import CacheOutcome
from tokenizer_svc.router import PickReason
from tokenwire.failures import TOKENIZER_FAILURES
from tokenwire.requests import FinishReason
from tokenwire.telemetry import REGISTRY, TierMetrics

REPLICA_STATES = ("ready", "ejected", "draining", "unreachable", "leaving")
"""Of a model tier; `leaving`: no longer listed, and running out."""


class TokenizerMetrics:
    """One per process; a registry of its own in tests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        tier = TierMetrics("tokenizer", registry)
        self.described = tier.described
        self.requests = tier.counter(
            "choices_total",
            "Choices that ended, by finish reason",
            ["reason"],
            known=[reason.value for reason in FinishReason],
        )
        self.requests_of = cache(self.requests.labels)
        self.errors = tier.counter(
            "errors_total", "Choices that ended in an error, by its reason", ["reason"], known=TOKENIZER_FAILURES
        )
        self.retries = tier.counter("retries_total", "Requests sent down again, their model tier lost before a token")
        self.resumes = tier.counter(
            "resumes_total", "Choices that went on at another model tier, or the same again, after tokens of theirs"
        )
        self.bounced = tier.counter("bounced_total", "Requests sent down on credit that found the queue full, and held")
        self.held = tier.gauge("held_requests", "Sequences held back until a model tier has room.")
        self.oldest_held = tier.gauge(
            "oldest_held_seconds", "How long the request has been held that is held longest", of_workers="livemax"
        )
        self.held_seconds = tier.histogram("held_seconds", "How long what was held back was held")
        self.credit = tier.gauge(
            "credit_requests", "Sequences that may be sent down now on the credits of all model tiers"
        )
        self.lapsed_credits = tier.counter(
            "lapsed_credits_total", "Requests that leases of model tiers still allowed when they lapsed"
        )
        self.prompt_tokens = tier.counter("prompt_tokens_total", "Tokens of prompts sent to model tiers")
        self.output_tokens = tier.counter("output_tokens_total", "Tokens generated and turned into text")
        self.embedded = tier.counter("embedded_total", "Inputs that were embedded")
        self.embedded_tokens = tier.counter("embedded_tokens_total", "Their tokens")
        self.stop_holds = tier.counter(
            "stop_string_holds_total", "Times that text was held back because a stop string may begin in it"
        )
        self.frames = tier.counter("token_frames_total", "Frames of tokens from model tiers")
        self.detokenize = tier.counter(
            "detokenize_seconds_total", "Time to turn these frames into text: detokenizing, stop strings, handing on"
        )
        self.duration = tier.histogram("request_seconds", "From receipt to the end of a request's last choice")
        self.running = tier.gauge("running_sequences", "Choices of requests that have not ended.")
        self.encode = tier.histogram("encode_seconds", "Template and encoding of one prompt")
        self.queue = tier.histogram("encode_queue_seconds", "From receipt of a prompt until its encoding began")
        self.picks = tier.counter(
            "picks_total",
            "Model tiers chosen for a request, by why that one",
            ["reason"],
            known=[reason.value for reason in PickReason],
        )
        self.picks_of = cache(self.picks.labels)
        self.expected_cached_tokens = tier.counter(
            "expected_cached_tokens_total", "Prompt tokens that the model tier chosen was thought to have cached"
        )
        self.ejections = tier.counter("ejections_total", "Times that a model tier was found failing and passed over")
        self.known_cached_blocks = tier.gauge(
            "known_cached_blocks",
            "KV blocks known to be cached, of all model tiers; of several workers the one that knows most",
            of_workers="livemax",
        )
        self.model_replicas = tier.gauge(
            "model_replicas",
            "Model tiers by state; of several workers the one that sees most",
            ["state"],
            of_workers="livemax",
        )
        self.first_frame = tier.histogram("first_frame_seconds", "From Submit to a model tier until its first tokens")
        prompts = tier.counter(
            "encoding_cache_prompts_total",
            "Prompts by what the encoding cache had of them: hit (all), part, miss (nothing)",
            ["outcome"],
        )
        self.cache_prompts = {outcome: prompts.labels(outcome.value) for outcome in CacheOutcome}
        self.cache_saved_tokens = tier.counter(
            "encoding_cache_saved_tokens_total", "Tokens of prompts that were taken from the encoding cache"
        )
        self.traces = tier.traces()
        self.cache_bytes = tier.gauge("encoding_cache_bytes", "What the encoding cache holds, texts and token ids")

    def handed_out(self, took_s: float) -> None:
        """A frame of tokens has become text."""
        self.frames.inc()
        self.detokenize.inc(took_s)

    def show_flow(self, credit_requests: int, oldest_held_s: float) -> None:
        """What may go down now, and how long the oldest of what may not has waited."""
        self.credit.set(credit_requests)
        self.oldest_held.set(oldest_held_s)

    def show_replicas(self, states: Iterable[str], num_cached_blocks: int) -> None:
        """In which of REPLICA_STATES each model tier is now, and how much is known to be cached in all of them."""
        counts = Counter(states)
        for state in REPLICA_STATES:
            self.model_replicas.labels(state).set(counts[state])
        self.known_cached_blocks.set(num_cached_blocks)
