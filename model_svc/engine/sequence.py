"""One sequence being generated, as the scheduler sees it.

Knows its tokens, its blocks and how far the KV cache has caught up. Does not know the wire, text, or the device.
"""

from dataclasses import dataclass, field
from enum import Enum

from model_svc.grammar.matching import Matching
from tokenwire.embeddings import EmbeddingOptions, Pooling, Vector
from tokenwire.sampling import SamplingParams, StopParams


class SequenceStatus(Enum):
    """Where a sequence stands. There is no prefill state: `num_computed_tokens` catches up with `len(token_ids)`."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


PENDING = -1
"""Stands for a token that has been sampled and that the host does not know yet."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt plus output of one choice. Mutated by the scheduler alone; the runner only reads."""

    sequence_id: int
    """Unique for the life of the engine; the key under which the caller finds it again."""
    token_ids: list[int]
    """Prompt, then output; grows by one per sampled token. The last may be PENDING."""
    num_prompt_tokens: int
    """How many of `token_ids` arrived with the request. On a resumed request this includes earlier output."""
    sampling: SamplingParams
    """Resolved: no field is None."""
    stop: StopParams
    """Resolved: `max_tokens` is set; `stop_token_ids` already holds the model's own unless `ignore_eos`."""
    choice: int = 0
    """Which of a request's `n` choices; part of the noise counter."""
    first_choice_id: int | None = None
    """`sequence_id` of its request's first choice; None: its own."""
    num_generated_before: int = 0
    """Output tokens made before this Submit (resume); they count as output positions and towards max_tokens."""
    logprobs: int | None = None
    """How many likeliest tokens are wanted beside each sampled token's log-probability; None: no log-probabilities."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens, but the first."""
    constraint: Matching | None = None
    """What the output must look like, and how far it has come; None: free text."""
    num_prompt_logprobs: int = 0
    """Prompt tokens whose log-probability has been given out; the next is that of `token_ids[this + 1]`."""
    embedding: EmbeddingOptions | None = None
    """What its hidden states shall become, its pooling set: it is computed once and generates nothing. None: it
    generates."""
    vector: Vector | None = None
    """What they became, once they have."""
    priority: int = 0
    """Higher first."""
    tenant: str = ""
    arrival_s: float = 0.0
    """Monotonic clock."""
    deadline_s: float | None = None
    """Monotonic clock; past it the sequence finishes with DEADLINE."""
    speculation: bool | None = None
    """Whether tokens may be drafted for it, which changes none of them; None: as the server does by default."""
    cache_root: str = ""
    """Sequences share cached prefixes only with those of the same root (see `tokenwire.block_hash.cache_root`)."""
    adapter: str = ""
    """The adapter it is computed with; empty: none."""
    adapter_slot: int = -1
    """Where on the device that is while it runs; -1: nowhere."""
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    """Tokens whose keys and values are in the cache, or will be once the steps that are launched are done."""
    num_cached_tokens: int = 0
    """Prompt tokens that were found in the cache instead of computed."""
    slot: int = -1
    """Number below the largest batch size that no other running sequence has; -1 while it does not run. The runner
    keeps per-sequence state under it, and finds out by `sequence_id` that a slot has another owner."""
    block_table: list[int] = field(default_factory=list)
    """Physical block of each run of `block_size` positions."""
    block_hashes: list[int] = field(default_factory=list)
    """Hash of each run of `block_size` tokens that were there when it was last looked at."""
    num_stored_blocks: int = 0
    """Blocks of the table that have been offered to the prefix cache."""
    awaited_hash: int | None = None
    """While it waits for another sequence to compute this block of their common prefix."""
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    num_preemptions: int = 0

    @property
    def request(self) -> int:
        """Equal for the choices of one request, and for them alone."""
        return self.sequence_id if self.first_choice_id is None else self.first_choice_id

    @property
    def is_ready(self) -> bool:
        """Whether it may be computed: its constraint, where it has one, has been made ready."""
        return self.constraint is None or self.constraint.is_ready

    @property
    def is_pending(self) -> bool:
        """Whether its last token is not known yet."""
        return self.token_ids[-1] == PENDING

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.token_ids)

    @property
    def num_original_prompt_tokens(self) -> int:
        """The prompt without the output that a resumed request brings along."""
        return self.num_prompt_tokens - self.num_generated_before

    @property
    def num_cacheable_tokens(self) -> int:
        """How many of its first tokens need not be computed where they are cached: nothing is wanted of them."""
        if self.embedding is not None and self.embedding.pooling is not Pooling.LAST:
            return 0
        return self.num_prompt_logprobs if self.wants_prompt_logprobs else len(self.token_ids) - 1

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of its prompt are asked for and not all given out."""
        return self.prompt_logprobs is not None and self.num_prompt_logprobs < self.num_original_prompt_tokens - 1

    @property
    def num_new_outputs(self) -> int:
        """Output tokens made by this engine."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_outputs(self) -> int:
        """Output tokens in all, those made before a resume included. Also the output position sampled next."""
        return self.num_generated_before + self.num_new_outputs

    @property
    def num_uncomputed_tokens(self) -> int:
        """How far the cache lags behind."""
        return len(self.token_ids) - self.num_computed_tokens

    def num_outputs_left(self, max_context_tokens: int) -> int:
        """Most output tokens that it may still make."""
        in_context = max_context_tokens - len(self.token_ids)
        return in_context if self.stop.max_tokens is None else min(in_context, self.stop.max_tokens - self.num_outputs)
