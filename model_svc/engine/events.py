"""What passes between the gRPC process and the engine process: one message a step each way. Plain values, pickled."""

from dataclasses import dataclass, field

from model_svc.engine.batch import RunnerInfo
from model_svc.engine.sequence import Sequence
from tokenwire.errors import TokenwireError
from tokenwire.requests import CancelReason, Terminal


@dataclass(frozen=True, slots=True)
class Abort:
    """Take a sequence back; unknown or finished ones are ignored."""

    sequence_id: int
    reason: CancelReason


@dataclass(slots=True)
class Inbox:
    """To the engine: what came since the last message."""

    sequences: list[Sequence] = field(default_factory=list)
    aborts: list[Abort] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ready:
    """From the engine, first: the model is loaded."""

    info: RunnerInfo


@dataclass(frozen=True, slots=True)
class Refused:
    """From the engine, first and last: it cannot serve, and why."""

    error: TokenwireError


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is after a step."""

    running: int = 0
    queued: int = 0
    queued_tokens: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    step: int = 0
    num_preemptions: int = 0
    """Since the engine started."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A sequence's terminal event."""

    sequence_id: int
    terminal: Terminal


@dataclass(frozen=True, slots=True)
class StepResult:
    """From the engine, once per step. `sequence_ids` and `token_ids` are parallel; deltas precede endings."""

    sequence_ids: list[int]
    token_ids: list[int]
    ended: list[Ended]
    load: EngineLoad
    num_received: int
    """Sequences taken from the inbox since the engine started; those after are still on their way."""
    num_batch_tokens: int = 0
    """Tokens computed in this step."""
    num_batch_sequences: int = 0
    step_s: float = 0.0
