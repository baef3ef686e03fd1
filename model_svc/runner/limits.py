"""How much a step may hold where the settings leave it open. Knows numbers only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Most sequences and most tokens of one step."""

    max_batch_size: int
    max_step_tokens: int


AUTOMATIC = {"cpu": StepLimits(64, 512), "cuda": StepLimits(256, 8192)}
"""By kind of device. A CPU's time per token hardly falls beyond these; a GPU needs more to be busy."""


def step_limits(max_batch_size: int, max_step_tokens: int, device_type: str) -> StepLimits:
    """The limits asked for, 0 meaning automatic: by the device, and never fewer tokens than sequences."""
    batch_size = max_batch_size or AUTOMATIC[device_type].max_batch_size
    if max_step_tokens and not max_batch_size:
        batch_size = min(batch_size, max_step_tokens)
    return StepLimits(batch_size, max_step_tokens or max(AUTOMATIC[device_type].max_step_tokens, batch_size))
