"""What a request is expected to use before it is known, from its size."""

from gateway.limits.limiter import Estimate
from gateway.text_requests import TextRequest

BYTES_PER_TOKEN = 4
USUAL_OUTPUT_TOKENS = 256
"""What a request that does not say is expected to generate, until it has."""


def estimate_of(request: TextRequest, num_choices: int) -> Estimate:
    """What a request is expected to use, from its size; a token is taken for four bytes."""
    if request.WhichOneof("input") == "token_ids":
        prompt_tokens = len(request.token_ids.ids)
    else:
        prompt_tokens = -(-request.ByteSize() // BYTES_PER_TOKEN)
    stop = request.options.stop
    output_tokens = stop.max_tokens if stop.HasField("max_tokens") else USUAL_OUTPUT_TOKENS
    return Estimate(prompt_tokens, output_tokens * num_choices)
