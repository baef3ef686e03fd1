"""A runner without a device: its tokens are a function of the sequence alone, and it checks what it is given."""

from model_svc.engine.batch import AfterDrafts, OutOfMemory, RunnerInfo, ScheduledBatch, ScheduledRow, StepOutput
from model_svc.engine.phase_clock import PhaseClock
from model_svc.engine.sequence import PENDING
from tokenwire.errors import Internal, TokenwireError
from tokenwire.requests import TokenLogprob
from tokenwire.sampling import NEUTRAL


def runner_info(
    *, num_blocks: int = 64, block_size: int = 4, max_context_tokens: int = 64, eos: tuple[int, ...] = ()
) -> RunnerInfo:
    return RunnerInfo(
        model="fake",
        vocab_size=1000,
        max_context_tokens=max_context_tokens,
        block_size=block_size,
        num_blocks=num_blocks,
        max_batch_size=8,
        max_step_tokens=32,
        eos_token_ids=eos,
        sampling_defaults=NEUTRAL,
        device="fake",
        dtype="none",
        attention="none",
        phases_s={},
    )


START = 17
WRONG = 999
"""Never what follows anything."""


def next_token(token_ids: list[int]) -> int:
    """What the fake model says after these tokens: it depends on every one of them."""
    value = START
    for token_id in token_ids:
        value = after(value, token_id)
    return value


def after(value: int, token_id: int) -> int:
    """What follows a context that `value` followed, once this token is added to it."""
    return (value * 31 + token_id) % 997


def prompt_logprobs_of(row: ScheduledRow) -> list[TokenLogprob]:
    return [TokenLogprob(row.sequence.token_ids[position + 1], -1.0) for position in row.prompt_logprob_positions]


class FakeRunner:
    """Keeps, per physical block and offset, which token was written there after which context, and reads them back.

    A sequence whose blocks were given to another, or belong to another prefix, or whose context was not computed in
    order, gets wrong tokens.
    """

    grammars = None
    draft_model = None

    def __init__(self, info: RunnerInfo) -> None:
        self.info = info
        self.adapters = None
        self.phases = PhaseClock()
        self.cache: dict[tuple[int, int], tuple[int, int]] = {}
        self.batches: list[ScheduledBatch] = []
        self.last_tokens: dict[int, int | None] = {}
        """What the last step of whoever had a slot sampled: what PENDING stands for."""
        self.fail_next = self.fail_next_collect = False
        self.bad_sequences: set[int] = set()
        self.bad_draft: int | None = None
        """A token that breaks the row it is drafted in."""
        self.memory_tokens = self.memory_rows = 10**9
        """Larger steps run out of memory, after having written what they compute."""

    def launch(self, batch: ScheduledBatch) -> StepOutput:
        self.batches.append(batch)
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("the device said no")
        for row in batch.rows:
            assert row.samples or not row.drafts, "drafts of a row that does not sample"
            num_outputs = row.end - row.sequence.num_original_prompt_tokens + row.samples
            assert num_outputs <= (row.sequence.stop.max_tokens or num_outputs), "more tokens than asked for"
            self._write(row)
        if batch.num_tokens > self.memory_tokens or len(batch.rows) > self.memory_rows:
            raise OutOfMemory("tried to allocate too much")
        bad = {
            index for index, row in enumerate(batch.rows)
            if row.sequence.sequence_id in self.bad_sequences or self.bad_draft in row.drafts
        }  # fmt: skip
        tokens = tuple(
            self._next_token(row, row.own_end) if row.samples and index not in bad else None
            for index, row in enumerate(batch.rows)
        )
        after_drafts = {
            index: AfterDrafts([self._next_token(row, row.own_end + 1 + at) for at in range(len(row.drafts))])
            for index, row in enumerate(batch.rows)
            if row.drafts and index not in bad
        }
        for index, after_row in after_drafts.items():
            if batch.rows[index].sequence.logprobs is not None:
                after_row.logprobs.extend(TokenLogprob(token, -1.0) for token in after_row.token_ids)
        for row, token in zip(batch.rows, tokens, strict=True):
            self.last_tokens[row.sequence.slot] = None if row.drafts else token
        errors: dict[int, TokenwireError] = {i: Internal("not numbers", reason="SEQUENCE_FAILED") for i in bad}
        logprobs = {
            index: TokenLogprob(token, -1.0)
            for index, (row, token) in enumerate(zip(batch.rows, tokens, strict=True))
            if token is not None and row.sequence.logprobs is not None
        }
        asked = {index: prompt_logprobs_of(row) for index, row in enumerate(batch.rows) if index not in bad}
        asked = {index: found for index, found in asked.items() if found}
        return StepOutput(tokens, errors, logprobs, asked, after_drafts)

    def collect(self, launched: StepOutput) -> StepOutput:
        if self.fail_next_collect:
            self.fail_next_collect = False
            raise RuntimeError("the device said no, later")
        return launched

    def close(self) -> None:
        pass

    def _slot(self, row: ScheduledRow, position: int) -> tuple[int, int]:
        return row.sequence.block_table[position // self.info.block_size], position % self.info.block_size

    def _write(self, row: ScheduledRow) -> None:
        for position, token_id in enumerate(row.new_token_ids, row.start):
            before = self.cache[self._slot(row, position - 1)][1] if position else START
            if token_id == PENDING:
                assert row.sequence.sampling.repetition_penalty == 1.0, "launched before its last token was known"
                assert row.num_new_tokens == 1, "a pending token is not in a chunk"
                known = self.last_tokens[row.sequence.slot]
                assert known is not None
                token_id = known
            self.cache[self._slot(row, position)] = (token_id, after(before, token_id))

    def _next_token(self, row: ScheduledRow, stop: int) -> int:
        """What follows the row's first `stop` positions."""
        value = START
        for position in range(stop):
            token_id, written = self.cache[self._slot(row, position)]
            value = after(value, token_id)
            if value != written:
                return WRONG
        return value
