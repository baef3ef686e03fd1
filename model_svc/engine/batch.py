"""What the scheduler hands to the runner, and what comes back. The seam between pure Python and the device."""

from dataclasses import dataclass, field
from typing import Protocol

from model_svc.engine.sequence import Sequence
from tokenwire.errors import TokenwireError
from tokenwire.requests import TokenLogprob
from tokenwire.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """One sequence's share of a step: compute its next `num_new_tokens` uncomputed tokens."""

    sequence: Sequence
    num_new_tokens: int

    @property
    def samples(self) -> bool:
        """Whether this row reaches the end of the sequence, so that the next token can be drawn from its logits."""
        return self.num_new_tokens == self.sequence.num_uncomputed_tokens

    @property
    def prompt_logprob_positions(self) -> range:
        """Positions computed in this step whose logits give prompt log-probabilities that are still to be given out.

        Position p gives that of the prompt's token p + 1. Empty where the sequence asks for none.
        """
        sequence = self.sequence
        if sequence.prompt_logprobs is None:
            return range(0)
        first = max(sequence.num_computed_tokens, sequence.num_prompt_logprobs)
        end = min(sequence.num_computed_tokens + self.num_new_tokens, sequence.num_original_prompt_tokens - 1)
        return range(first, end)


@dataclass(frozen=True, slots=True)
class ScheduledBatch:
    """One step. Blocks for every row's new tokens are already in its `block_table`."""

    rows: tuple[ScheduledRow, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(row.num_new_tokens for row in self.rows)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What the runner made of a batch."""

    token_ids: tuple[int | None, ...]
    """One per row, in the rows' order; None for a row that does not sample, or that is in `errors`."""
    errors: dict[int, TokenwireError] = field(default_factory=dict)
    """What went wrong in a row (its index in the batch). That sequence must end with this error; the other rows are as
    good as ever. Internal, as for logits that are not numbers: what its blocks hold is not to be trusted."""
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)
    """By row: the sampled token's, where the sequence asks for it and a token was sampled."""
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    """By row: those of the prompt's tokens that the row's logits predict and that were not given before
    (`Sequence.num_prompt_logprobs`), in the prompt's order, where the sequence asks for them."""


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


class OutOfMemory(Exception):
    """The device had no memory for a step. Nothing of it counts; a smaller one may be run."""


class ModelRunner(Protocol):
    """The only caller of the device."""

    info: RunnerInfo

    def run(self, batch: ScheduledBatch) -> StepOutput:
        """Compute one step; reads the sequences, changes none of them. Writes keys and values into their blocks.

        Raises OutOfMemory.
        """

    def close(self) -> None:
        """Give the device back."""
