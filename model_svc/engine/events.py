"""What passes between the gRPC process and the engine process: one message a step each way. Plain values, pickled.

What comes with every step is a named tuple: those pickle several times as fast as frozen dataclasses.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import NamedTuple

from model_svc.engine.adapters import AdapterOutcome, LoadAdapter
from model_svc.engine.batch import MaskTimes, RunnerInfo
from model_svc.engine.drafting import DraftCounts
from model_svc.engine.phase_clock import PHASES
from model_svc.engine.sequence import Sequence
from tokenwire.errors import TokenwireError
from tokenwire.requests import CancelReason, Terminal, TokenLogprob


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
    pause: bool | None = None
    """Stop (True) or go on (False) starting new sequences; None: as before."""
    draining: bool = False
    """The tier is shutting down; holds from then on."""
    adapter_loads: list[LoadAdapter] = field(default_factory=list)
    adapter_unloads: list[str] = field(default_factory=list)
    """Names of adapters that no sequence uses any more."""


@dataclass(frozen=True, slots=True)
class Ready:
    """From the engine, first: the model is loaded."""

    info: RunnerInfo
    adapters: tuple[AdapterOutcome, ...] = ()
    """What became of those that the settings name."""


@dataclass(frozen=True, slots=True)
class Refused:
    """From the engine, first and last: it cannot serve, and why."""

    error: TokenwireError


class EngineLoad(NamedTuple):
    """How busy the engine is after a step."""

    running: int = 0
    queued: int = 0
    queued_tokens: int = 0
    kv_blocks_used: int = 0
    kv_blocks_cached: int = 0
    """Free ones whose content can be reused."""
    kv_blocks_total: int = 0
    step: int = 0
    num_preemptions: int = 0
    """Since the engine started."""
    paused: bool = False
    num_out_of_memory: int = 0
    """Steps for which the device had no memory, since the engine started."""
    step_budget_tokens: int = 0
    """Most tokens of a step at present: less than was set, for a while, after running out of memory."""
    num_adapters: int = 0
    num_adapters_on_device: int = 0
    adapter_bytes: int = 0
    """What the latter take."""
    num_adapter_uploads: int = 0
    """Times that an adapter was brought to the device, since the engine started."""
    drafts: DraftCounts = DraftCounts()
    oldest_queued_s: float | None = None
    """When the sequence that has waited longest for its start arrived, on the monotonic clock; None: none waits."""
    num_replayed: int = 0
    """Steps whose decodes were a recorded graph, since the engine started."""
    num_not_replayed: int = 0
    """Those with decodes that were not, though graphs are recorded."""


@dataclass(slots=True)
class NewTokens:
    """What a step made. `sequence_ids` and `token_ids` are parallel; a sequence may occur several times, in order."""

    sequence_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    """By sequence id, for those that ask: one per token of it."""
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    """By sequence id, for those that ask: the prompt's next tokens, all before the first output token."""
    masks: MaskTimes = MaskTimes()
    """Of the step that made them."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A sequence's terminal event."""

    sequence_id: int
    terminal: Terminal


class StepResult(NamedTuple):
    """From the engine, once per step. Tokens precede ends."""

    new: NewTokens
    ended: list[Ended]
    load: EngineLoad
    num_received: int
    """Sequences taken from the inbox since the engine started; those after are still on their way."""
    stored_hashes: Rows[int] = ()
    """KV blocks that became findable in the prefix cache since the last result, by hash."""
    removed_hashes: Rows[int] = ()
    """Those that are findable no more; none is in both lists."""
    num_batch_tokens: int = 0
    """Tokens computed in this step."""
    num_batch_sequences: int = 0
    step_s: float = 0.0
    phases_s: tuple[float, ...] = (0.0,) * len(PHASES)
    """Seconds the engine has spent in each of `PHASES` since it started, but for sending this result."""
    adapters: Rows[AdapterOutcome] = ()
    """Adapters that were loaded, or not, or unloaded since the last result."""
