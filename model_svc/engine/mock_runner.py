"""A runner without a model: takes the time a model would take and makes tokens that anyone can predict.

For tests of the other tiers and for load tests. The scheduler, the blocks and the wire around it are the real ones.
Every token is certain: its log-probability is 0 and it alone is among the likeliest. allowed_token_ids and min_tokens
hold. There are no logits, so penalties, logit bias and banned sequences change nothing, nor do temperature (but for
0 or not), top-k, top-p and min-p. Nothing is drafted, whatever is asked for.
"""

import math
import time
import zlib
from array import array
from pathlib import Path

from model_svc.adapter_config import read_adapter_config
from model_svc.engine.adapters import AdapterOutcome, AdapterStore, LoadAdapter
from model_svc.engine.batch import RunnerInfo, ScheduledBatch, ScheduledRow, StepOutput
from model_svc.engine.phase_clock import PhaseClock
from model_svc.engine.sequence import Sequence
from model_svc.settings import EngineSettings
from tokenwire.embeddings import EmbeddingOptions, Pooling, Vector
from tokenwire.errors import FailedPrecondition, TokenwireError
from tokenwire.noise import uniform
from tokenwire.requests import TokenLogprob
from tokenwire.sampling import NEUTRAL

EMBEDDING_SIZE = 64
"""Values of a mock embedding."""


def build_runner(settings: EngineSettings) -> "MockRunner":
    """A mock runner as the `mock_*` settings say. Raises FailedPrecondition for what cannot be."""
    if settings.tensor_parallel > 1:
        raise FailedPrecondition(
            f"tensor_parallel: {settings.tensor_parallel} ranks need a model to split, which the mock engine has not",
            reason="TENSOR_PARALLEL",
        )
    if settings.draft_model:
        raise FailedPrecondition("draft_model: the mock engine has no model to draft for", reason="DRAFT_MODEL_OF_MOCK")
    if settings.max_context_tokens == 1:
        raise FailedPrecondition("max_context_tokens: 1 is not allowed: at least 2", reason="CONTEXT_UNKNOWN")
    return MockRunner(settings)


def mock_token(
    prompt: list[int], seed: int | None, choice: int, position: int, vocab_size: int, adapter: str = ""
) -> int:
    """The token at an output position: a hash of prompt and adapter; if sampled (`seed` given), of seed and choice."""
    digest = zlib.crc32(adapter.encode(), zlib.crc32(array("I", prompt).tobytes()))
    noise = uniform(digest if seed is None else digest ^ seed, 0 if seed is None else choice, position)
    return int(noise * vocab_size)


class MockAdapterStore:
    """Adapters whose files are looked at and whose weights nobody needs. See `AdapterStore`."""

    num_uploads = 0

    def __init__(self) -> None:
        self._outcomes: list[AdapterOutcome] = []

    def begin(self, load: LoadAdapter) -> None:
        """Look at its files at once."""
        error: TokenwireError | None = None
        try:
            read_adapter_config(Path(load.folder))
        except TokenwireError as refusal:
            error = refusal
        self._outcomes.append(AdapterOutcome(load.name, error=error, num_bytes=1))

    @property
    def num_loading(self) -> int:
        """See `AdapterStore`."""
        return len(self._outcomes)

    @property
    def has_outcomes(self) -> bool:
        """See `AdapterStore`."""
        return bool(self._outcomes)

    def take_outcomes(self) -> list[AdapterOutcome]:
        """See `AdapterStore`."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def remove(self, name: str) -> None:
        """There is nothing to remove."""

    def close(self) -> None:
        """Nothing is being read."""


def mock_vector(token_ids: list[int], options: EmbeddingOptions) -> Vector:
    """A vector that is a hash of the tokens and the pooling, cut and scaled as asked for."""
    salt = b"" if options.pooling is None else options.pooling.value.encode()
    seed = zlib.crc32(array("I", token_ids).tobytes() + salt)
    values = [2 * uniform(seed, 0, position) - 1 for position in range(options.dimensions or EMBEDDING_SIZE)]
    length = math.hypot(*values) if options.normalize else 1.0
    return array("f", [value / length for value in values]).tobytes()


class MockRunner:
    """Sleeps `mock_step_ms` a step, plus the time of prefilled tokens at `mock_prefill_tokens_per_s`."""

    grammars = None
    draft_model = None
    """There is no vocabulary, so a constraint has no meaning; requests that have one are refused on receipt."""

    def __init__(self, settings: EngineSettings) -> None:
        self.phases = PhaseClock()
        self.adapters: AdapterStore | None = MockAdapterStore() if settings.takes_adapters else None
        self._settings = settings
        self._done_s = 0.0
        """When the last step launched is done, on the monotonic clock."""
        longest = settings.mock_max_context_tokens
        self.info = RunnerInfo(
            model=settings.served_name,
            vocab_size=settings.mock_vocab_size,
            max_context_tokens=min(longest, settings.max_context_tokens or longest),
            block_size=settings.block_size,
            num_blocks=settings.mock_kv_blocks,
            max_batch_size=settings.max_batch_size or 64,
            max_step_tokens=settings.max_step_tokens or 512,
            eos_token_ids=(),
            sampling_defaults=NEUTRAL,
            device="mock",
            dtype="none",
            attention="none",
            phases_s={},
            num_adapter_slots=settings.adapter_slots if settings.takes_adapters else 0,
            max_adapter_bytes=settings.adapter_memory if settings.takes_adapters else 0,
            embedding_size=EMBEDDING_SIZE,
            pooling=Pooling.LAST,
        )

    def launch(self, batch: ScheduledBatch) -> tuple[float, StepOutput]:
        """Begin a step, when the one before it is done; its tokens are known from the start."""
        prefill_tokens = sum(row.num_new_tokens for row in batch.rows if row.num_new_tokens > 1)
        step_s = self._settings.mock_step_ms / 1000 + prefill_tokens / self._settings.mock_prefill_tokens_per_s
        self._done_s = max(self._done_s, time.monotonic()) + step_s
        output = self._output(batch)
        self.phases.lap("sample")
        return self._done_s, output

    def collect(self, launched: tuple[float, StepOutput]) -> StepOutput:
        """Sleep until the step is done."""
        done_s, output = launched
        time.sleep(max(0.0, done_s - time.monotonic()))
        self.phases.lap("wait")
        return output

    def close(self) -> None:
        """Nothing to give back."""

    def _output(self, batch: ScheduledBatch) -> StepOutput:
        token_ids = tuple(self._token(row) if row.samples else None for row in batch.rows)
        logprobs = {
            index: certain(token_id, row.sequence.logprobs)
            for index, (row, token_id) in enumerate(zip(batch.rows, token_ids, strict=True))
            if token_id is not None and row.sequence.logprobs is not None
        }
        prompt_logprobs = {
            index: [certain(row.sequence.token_ids[p + 1], row.sequence.prompt_logprobs or 0) for p in positions]
            for index, row in enumerate(batch.rows)
            if (positions := row.prompt_logprob_positions)
        }
        vectors = {
            index: mock_vector(row.sequence.token_ids, row.sequence.embedding)
            for index, row in enumerate(batch.rows)
            if row.sequence.embedding is not None and row.end == row.sequence.num_tokens
        }
        return StepOutput(token_ids, logprobs=logprobs, prompt_logprobs=prompt_logprobs, vectors=vectors)

    def _token(self, row: ScheduledRow) -> int:
        sequence = row.sequence
        seed = sequence.sampling.seed if sequence.sampling.temperature else None
        size = self.info.vocab_size
        prompt, adapter = original_prompt(sequence), sequence.adapter
        token_id = mock_token(prompt, seed, sequence.choice, sequence.num_outputs, size, adapter)
        early = sequence.num_outputs < sequence.stop.min_tokens
        barred = sequence.stop.stop_token_ids if early else ()
        allowed = sequence.sampling.allowed_token_ids or range(size)
        candidates = (allowed[(token_id + offset) % len(allowed)] for offset in range(len(allowed)))
        return next((candidate for candidate in candidates if candidate not in barred), token_id)


def certain(token_id: int, num_top: int) -> TokenLogprob:
    """The entry of a token that could not have been another."""
    return TokenLogprob(token_id, 0.0, (TokenLogprob(token_id, 0.0),) if num_top else ())


def original_prompt(sequence: Sequence) -> list[int]:
    """The prompt without the output that a resumed request brings along."""
    return sequence.token_ids[: sequence.num_original_prompt_tokens]
