"""What this tier measures. All per request, nothing per token."""

from prometheus_client import CollectorRegistry

from tokenizer_svc.prompt_encoder import CacheOutcome
from tokenwire.telemetry import REGISTRY, TierMetrics


class TokenizerMetrics:
    """One per process; a registry of its own in tests."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        tier = TierMetrics("tokenizer", registry)
        self.requests = tier.counter("choices_total", "Choices that ended, by finish reason", ["reason"])
        self.errors = tier.counter("errors_total", "Choices that ended in an error, by its reason", ["reason"])
        self.retries = tier.counter("retries_total", "Requests sent to a second model tier before their first token")
        self.prompt_tokens = tier.counter("prompt_tokens_total", "Tokens of prompts sent to model tiers")
        self.output_tokens = tier.counter("output_tokens_total", "Tokens generated and turned into text")
        self.running = tier.gauge("running_sequences", "Choices of requests that have not ended.")
        self.encode = tier.histogram("encode_seconds", "Template and encoding of one prompt")
        self.queue = tier.histogram("encode_queue_seconds", "From receipt of a prompt until its encoding began")
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
        self.cache_bytes = tier.gauge("encoding_cache_bytes", "What the encoding cache holds, texts and token ids")
