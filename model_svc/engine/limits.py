"""What bounds a step, and how the queue is kept, as the settings and the runner have it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from model_svc.engine.drafting import DraftLimits


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one step, and how the queue is kept."""

    max_batch_size: int
    max_step_tokens: int
    window_s: float = 0.0
    """See `AdmissionWindow`, as the next one."""
    window_requests: int = 0
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    """See `FairShare`."""
    drafts: DraftLimits = DraftLimits()
