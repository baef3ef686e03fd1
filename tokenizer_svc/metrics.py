"""What this tier measures. All per request, nothing per token."""

from prometheus_client import CollectorRegistry

from tokenwire.telemetry import REGISTRY, TierMetrics


class TokenizerMetrics:
    """One per process; a registry of its own in tests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        tier = TierMetrics("tokenizer", registry)
        self.requests = tier.counter("choices_total", "Choices that ended, by finish reason", ["reason"])
        self.errors = tier.counter("errors_total", "Choices that ended in an error, by its reason", ["reason"])
        self.retries = tier.counter("retries_total", "Requests sent down again, their model tier lost before a token")
        self.resumes = tier.counter(
            "resumes_total", "Choices that went on at another model tier, or the same again, after tokens of theirs"
        )
        self.bounced = tier.counter("bounced_total", "Requests sent down on credit that found the queue full, and held")
        self.held = tier.gauge("held_requests", "Sequences held back until a model tier has room.")
        self.held_seconds = tier.histogram("held_seconds", "How long what was held back was held")
        self.lapsed_credits = tier.counter(
            "lapsed_credits_total", "Requests that leases of model tiers still allowed when they lapsed"
        )
        self.prompt_tokens = tier.counter("prompt_tokens_total", "Tokens of prompts sent to model tiers")
        self.output_tokens = tier.counter("output_tokens_total", "Tokens generated and turned into text")
        self.running = tier.gauge("running_sequences", "Choices of requests that have not ended.")
        self.encode = tier.histogram("encode_seconds", "Template and encoding of one prompt")
        self.queue = tier.histogram("encode_queue_seconds", "From receipt of a prompt until its encoding began")
        self.first_frame = tier.histogram("first_frame_seconds", "From Submit to a model tier until its first tokens")
