"""OpenAI's `usage` and `finish_reason`."""

from dataclasses import replace
from typing import Any

from gateway.streams import Event
from tokenwire.requests import FinishReason, Usage

FINISH_REASONS = {
    FinishReason.STOP_TOKEN: "stop",
    FinishReason.STOP_STRING: "stop",
    FinishReason.LENGTH: "length",
}
"""The ends that OpenAI's API has a word for; the others are errors there."""


def finish_reason(reason: FinishReason, with_calls: bool) -> str:
    """OpenAI's word for an end; `with_calls`: the answer called a function, and was not cut."""
    found = FINISH_REASONS[reason]
    return "tool_calls" if with_calls and found == "stop" else found


def usage_object(usage: Usage) -> dict[str, Any]:
    """`usage` as OpenAI's API has it. No client's predictions are taken and no audio is made: those counts are 0."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
            "audio_tokens": 0,
        },
    }


def embedding_usage_object(usage: Usage) -> dict[str, int]:
    """OpenAI's `usage` of embeddings: nothing is generated."""
    return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}


class UsageTotal:
    """Adds up the outputs of one call; a prompt with several choices counts once."""

    def __init__(self) -> None:
        self.usage = Usage()

    def add(self, event: Event) -> None:
        """Count an output's terminal event."""
        if event.terminal is None:
            return
        usage = event.terminal.usage
        counted = usage if event.choice == 0 else replace(usage, prompt_tokens=0, cached_tokens=0)
        self.usage = self.usage + counted
