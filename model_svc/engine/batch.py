"""What the scheduler hands to the runner, and what comes back. The seam between pure Python and the device."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from model_svc.engine.adapters import AdapterStore
from model_svc.engine.phase_clock import PhaseClock
from model_svc.engine.sequence import Sequence
from model_svc.grammar.bench import GrammarBench
from tokenwire.embeddings import Pooling, Vector
from tokenwire.errors import TokenwireError
from tokenwire.requests import TokenLogprob
from tokenwire.sampling import SamplingParams

NO_POSITIONS = range(0)


@dataclass(slots=True, eq=False, init=False)
class ScheduledRow:
    """One sequence's share of a step: compute its next `num_new_tokens` uncomputed tokens. Nobody changes it.

    After these may come `drafts`, guesses of what follows: then a token is sampled after its last own token and after
    every draft. Remembers how the sequence stood when the row was made: it may have moved on when the step's results
    are there.
    """

    sequence: Sequence
    num_new_tokens: int
    """Drafts included."""
    drafts: list[int]
    """Tokens that may come next, in order; they are computed but are not the sequence's own."""
    start: int
    """Tokens computed before: the position of the row's first token."""
    end: int
    """Positions written afterwards, drafts included."""
    own_end: int
    """The same without drafts: the index of the first token that the row samples, where it does."""
    samples: bool
    """Whether the row reaches the end of a sequence that generates, so that the next token is drawn from its logits."""
    num_preemptions: int
    """The sequence's: once it has been preempted, what the row computed is in blocks that are not its any more."""
    prompt_logprob_positions: range
    """Positions whose logits give prompt log-probabilities that are to be given out; p gives that of token p + 1."""

    def __init__(self, sequence: Sequence, num_own_tokens: int, drafts: list[int] | None = None) -> None:
        self.sequence, self.drafts = sequence, drafts or []
        self.num_new_tokens = num_own_tokens + len(self.drafts)
        self.start = sequence.num_computed_tokens
        self.end, self.own_end = self.start + self.num_new_tokens, self.start + num_own_tokens
        self.samples = self.own_end == len(sequence.token_ids) and sequence.embedding is None
        self.num_preemptions = sequence.num_preemptions
        self.prompt_logprob_positions = NO_POSITIONS
        if sequence.prompt_logprobs is not None and sequence.wants_prompt_logprobs:
            first, last = max(self.start, sequence.num_prompt_logprobs), sequence.num_original_prompt_tokens - 1
            self.prompt_logprob_positions = range(first, min(self.own_end, last))

    @property
    def num_own_tokens(self) -> int:
        """Without drafts."""
        return self.own_end - self.start

    @property
    def new_token_ids(self) -> list[int]:
        """What is computed: the sequence's own tokens, then the drafts."""
        return self.sequence.token_ids[self.start : self.own_end] + self.drafts


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One step. Blocks for every row's new tokens are already in its `block_table`."""

    rows: tuple[ScheduledRow, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum([row.num_new_tokens for row in self.rows])

    @property
    def num_drafts(self) -> int:
        """Those of them that are drafts."""
        return sum([len(row.drafts) for row in self.rows])


@dataclass(frozen=True, slots=True)
class AfterDrafts:
    """What a row sampled after each of its drafts, as if those were the sequence's own tokens."""

    token_ids: list[int]
    """In order; it ends before a draft after which no token can be drawn."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """One for each, where the sequence asks for them."""


class MaskTimes(NamedTuple):
    """What constraints took in a step."""

    num_rows: int = 0
    busy_s: float = 0.0
    """Of all threads together, beside the forward pass."""
    waited_s: float = 0.0
    """Of that, what the step had to wait for."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the runner made of a batch."""

    token_ids: tuple[int | None, ...]
    """One per row, in the rows' order: what follows its last own token. None for a row that does not sample, or that is
    in `errors`."""
    errors: dict[int, TokenwireError] = field(default_factory=dict)
    """What went wrong in a row (its index in the batch). That sequence must end with this error, or be computed again
    without drafts if it had any; the other rows are as good as ever. Internal, as for logits that are not numbers: what
    its blocks hold is not to be trusted."""
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    """By row: the sampled token's, where the sequence asks for it and a token was sampled."""
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    """By row: those of the prompt's tokens that the row's logits predict and that were not given before
    (`Sequence.num_prompt_logprobs`), in the prompt's order, where the sequence asks for them."""
    after_drafts: dict[int, AfterDrafts] = field(default_factory=dict)
    """By row, of those with drafts that are not in `errors`."""
    vectors: dict[int, Vector] = field(default_factory=dict)
    """By row: what a sequence that is embedded came to, where the row reaches its end."""
    completed: frozenset[int] = frozenset()
    """Rows whose sequence ends without another token: its constraint allows none, and it has no token that says so."""
    masks: MaskTimes = MaskTimes()
    replayed: bool | None = None
    """Whether its decodes were a recorded graph; None: it had none, or nothing is recorded."""


@dataclass(frozen=True, slots=True)
class RunnerInfo:
    """What the engine and its clients need to know of a loaded model."""

    model: str
    """Name the model is served under."""
    vocab_size: int
    max_context_tokens: int
    """Most positions a sequence may have, prompt and output together."""
    block_size: int
    """Positions per KV block."""
    num_blocks: int
    """KV blocks in the pool."""
    max_batch_size: int
    """Most sequences of one step."""
    max_step_tokens: int
    """Most tokens of one step."""
    eos_token_ids: tuple[int, ...]
    """End-of-sequence ids of the model's generation_config."""
    sampling_defaults: SamplingParams
    """generation_config's sampling; no field but `seed` is None."""
    device: str
    dtype: str
    attention: str
    phases_s: dict[str, float]
    """Seconds each start-up phase took, in order."""
    num_adapter_slots: int = 0
    """Adapters that the device can hold at once; 0: none are served."""
    max_adapter_bytes: int = 0
    """What these may take together."""
    takes_drafts: bool = False
    """Whether rows may have drafts."""
    generates: bool = True
    """Whether it gives tokens."""
    embedding_size: int = 0
    """Values of an embedding; 0: it gives none."""
    pooling: Pooling | None = None
    """What a request that names no pooling gets; None: it must name one."""
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs it is computed on."""
    whole_sequences: bool = False
    """Whether each sequence must be computed in one step, as attention to later positions demands. Then nothing is
    cached: `block_size` is beyond the longest sequence, and a block stands for a sequence's place."""


class OutOfMemory(Exception):
    """The device had no memory for a step. Nothing of it counts; a smaller one may be run."""


class DraftModel(Protocol):
    """A second model that drafts for the one that is served."""

    def most(self, sequence: Sequence) -> int:
        """How many tokens it may propose for a sequence."""

    def num_behind(self, sequence: Sequence) -> int:
        """Tokens of the sequence that it has to compute before it can propose one."""

    def propose(self, wanted: Rows[tuple[Sequence, int]]) -> list[list[int]]:
        """Up to so many tokens that may follow each sequence's. Blocks hold them already. Raises OutOfMemory.

        Nothing for a sequence that it could not catch up with yet.
        """

    def forget(self, sequence: Sequence) -> None:
        """It has ended."""

    def close(self) -> None:
        """Give the device back."""


class ModelRunner(Protocol):
    """The only caller of the device."""

    info: RunnerInfo
    adapters: AdapterStore | None
    """None: sequences with an adapter are not run."""
    phases: PhaseClock
    """The engine's too. A runner laps prepare, forward and sample in `launch`, and wait in `collect`."""
    draft_model: DraftModel | None
    """None: there is none."""
    grammars: GrammarBench | None
    """What makes new sequences' constraints ready; None where outputs cannot be constrained."""

    def launch(self, batch: ScheduledBatch) -> Any:
        """Begin a step; gives what `collect` needs. Reads the sequences now, changes none of them.

        Writes keys and values into their blocks. A token that is PENDING is the one that the step before, which need
        not be collected yet, sampled for its sequence. Raises OutOfMemory.
        """

    def collect(self, launched: Any) -> StepOutput:
        """Wait for a step that was launched, oldest first, and give what it made."""

    def close(self) -> None:
        """Give the device back."""


def run_step(runner: ModelRunner, batch: ScheduledBatch) -> StepOutput:
    """One step from beginning to end."""
    return runner.collect(runner.launch(batch))
