"""Decides what each step computes. Pure Python: knows tokens, blocks and time, not the device.

There is no prefill phase and no decode phase: every sequence's `num_computed_tokens` catches up with its length, within
a token budget per step. Decodes go first, so a long prompt never stalls them; prefills share the rest in rank order.
Rank is priority (higher first), then arrival. When blocks run out the lowest-ranked running sequence gives its blocks
back and is computed anew later (preemption by recompute): the highest-ranked one always goes on, so there is no
deadlock.
"""

import bisect
import time
from collections.abc import Callable
from dataclasses import dataclass

from model_svc.engine.batch import RunnerInfo, ScheduledBatch, ScheduledRow, StepOutput
from model_svc.engine.events import Ended, EngineLoad
from model_svc.engine.kv_cache_manager import KVCacheManager
from model_svc.engine.sequence import Sequence, SequenceStatus
from model_svc.engine.stop_checker import reason_to_stop
from tokenwire.errors import FailedPrecondition, Internal, TokenwireError
from tokenwire.requests import CancelReason, FinishReason, ModelTimings, Terminal, Usage

FINISH_OF_CANCEL = {
    CancelReason.CLIENT: FinishReason.CANCELLED,
    CancelReason.STOP_STRING: FinishReason.STOP_STRING,
    CancelReason.DEADLINE: FinishReason.DEADLINE,
    CancelReason.SHUTDOWN: FinishReason.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one step."""

    max_batch_size: int
    max_step_tokens: int


def rank(sequence: Sequence) -> tuple[int, float, int]:
    """Sorts the sequence that should run first to the front."""
    return (-sequence.priority, sequence.arrival_s, sequence.sequence_id)


class Scheduler:
    """Owns every sequence from `add` until its `Ended` is taken.

    Raises FailedPrecondition when the pool cannot hold one sequence of the full context. `clock` is monotonic seconds.
    """

    def __init__(self, info: RunnerInfo, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        if info.num_blocks * info.block_size < info.max_context_tokens:
            held = info.num_blocks * info.block_size
            message = f"the KV cache holds {held} tokens, less than one context of {info.max_context_tokens}"
            raise FailedPrecondition(f"{message}: give more --kv-memory or a smaller --max-context-tokens")
        self.clock = clock
        self.max_context_tokens = info.max_context_tokens
        self.limits = limits
        self.kv = KVCacheManager(info.num_blocks, info.block_size)
        self.sequences: dict[int, Sequence] = {}
        self.waiting: list[Sequence] = []
        """Sorted by rank."""
        self.running: list[Sequence] = []
        """Sorted by rank; each holds blocks for its whole prompt."""
        self.ended: list[Ended] = []
        self.num_steps = 0
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self.sequences or self.ended)

    def add(self, sequence: Sequence) -> None:
        """Take a new sequence in; it waits. It must fit the context, which admission has checked."""
        self.sequences[sequence.sequence_id] = sequence
        bisect.insort(self.waiting, sequence, key=rank)

    def abort(self, sequence_id: int, reason: CancelReason) -> None:
        """End a sequence now; its blocks are free at once. Unknown or finished ones are ignored."""
        sequence = self.sequences.get(sequence_id)
        if sequence is not None:
            self._finish(sequence, FINISH_OF_CANCEL[reason])

    def schedule(self) -> ScheduledBatch:
        """Choose this step's rows and give them their blocks. May end and preempt sequences."""
        now_s = self.clock()
        self._expire(now_s)
        budget = self.limits.max_step_tokens
        rows = self._decodes(budget)
        budget -= len(rows)
        self._admit(budget)
        decoding = {row.sequence.sequence_id for row in rows}
        for sequence in self.running:
            if budget > 0 and sequence.sequence_id not in decoding:
                chunk = min(sequence.num_uncomputed_tokens, budget)
                budget -= chunk
                rows.append(ScheduledRow(sequence, chunk))
        for row in rows:
            if row.sequence.first_scheduled_s is None:
                row.sequence.first_scheduled_s = now_s
        return ScheduledBatch(tuple(rows))

    def update(self, batch: ScheduledBatch, output: StepOutput) -> list[tuple[int, int]]:
        """Enter what the runner computed. Returns (sequence_id, token_id) of each new token that is output."""
        now_s = self.clock()
        self.num_steps += 1
        deltas: list[tuple[int, int]] = []
        for index, (row, token_id) in enumerate(zip(batch.rows, output.token_ids, strict=True)):
            sequence = row.sequence
            if sequence.status is not SequenceStatus.RUNNING:
                continue
            if index in output.errors:
                self.fail(sequence, Internal(output.errors[index], reason="SEQUENCE_FAILED"))
                continue
            sequence.num_computed_tokens += row.num_new_tokens
            if token_id is None:
                continue
            sequence.token_ids.append(token_id)
            if sequence.first_token_s is None:
                sequence.first_token_s = now_s
            reason = reason_to_stop(sequence, self.max_context_tokens)
            if reason is not FinishReason.STOP_TOKEN:
                deltas.append((sequence.sequence_id, token_id))
            if reason is not None:
                self._finish(sequence, reason)
        return deltas

    def fail(self, sequence: Sequence, error: TokenwireError) -> None:
        """End a sequence with a typed error."""
        self._finish(sequence, FinishReason.ERROR, error=error)

    def take_ended(self) -> list[Ended]:
        """The terminal events since the last call."""
        ended, self.ended = self.ended, []
        return ended

    def load(self) -> EngineLoad:
        """How busy the engine is."""
        return EngineLoad(
            running=len(self.running),
            queued=len(self.waiting),
            queued_tokens=sum(sequence.num_tokens for sequence in self.waiting),
            kv_blocks_used=self.kv.pool.num_used,
            kv_blocks_total=self.kv.pool.num_blocks,
            step=self.num_steps,
            num_preemptions=self.num_preemptions,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless lists, states and blocks agree."""
        self.kv.check_integrity(self.sequences.values())
        listed = self.waiting + self.running
        if len(listed) != len(self.sequences) or {s.sequence_id for s in listed} != set(self.sequences):
            raise AssertionError("a sequence is in no list, or in two")
        if any(s.status is not SequenceStatus.WAITING or s.block_table for s in self.waiting):
            raise AssertionError("a waiting sequence has another status, or holds blocks")
        if any(s.status is not SequenceStatus.RUNNING for s in self.running):
            raise AssertionError("a running sequence has another status")
        for name, sequences in (("waiting", self.waiting), ("running", self.running)):
            if sequences != sorted(sequences, key=rank):
                raise AssertionError(f"{name} is not in rank order")

    def _expire(self, now_s: float) -> None:
        late = [s for s in self.sequences.values() if s.deadline_s is not None and s.deadline_s <= now_s]
        for sequence in late:
            self._finish(sequence, FinishReason.DEADLINE)

    def _decodes(self, budget: int) -> list[ScheduledRow]:
        """One row for each running sequence that lacks only its last token, in rank order; preempts for blocks."""
        rows: list[ScheduledRow] = []
        for sequence in list(self.running):
            if len(rows) == budget:
                break
            if sequence.status is not SequenceStatus.RUNNING or sequence.num_uncomputed_tokens != 1:
                continue
            while not self.kv.grow(sequence, sequence.num_tokens):
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                rows.append(ScheduledRow(sequence, 1))
        return rows

    def _admit(self, budget: int) -> None:
        """Move waiting sequences, in rank order, to running while the batch, the budget and the blocks hold them.

        A sequence gets the blocks of its whole prompt at once, so that what is being prefilled cannot starve itself.
        """
        budget -= sum(s.num_uncomputed_tokens for s in self.running if s.num_uncomputed_tokens > 1)
        while self.waiting and budget > 0 and len(self.running) < self.limits.max_batch_size:
            sequence = self.waiting[0]
            if not self.kv.grow(sequence, sequence.num_tokens):
                return
            self.waiting.pop(0)
            sequence.status = SequenceStatus.RUNNING
            bisect.insort(self.running, sequence, key=rank)
            budget -= sequence.num_uncomputed_tokens

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        sequence.num_preemptions += 1
        self.running.remove(sequence)
        self.kv.release(sequence)
        sequence.status = SequenceStatus.WAITING
        bisect.insort(self.waiting, sequence, key=rank)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: TokenwireError | None = None) -> None:
        (self.running if sequence.status is SequenceStatus.RUNNING else self.waiting).remove(sequence)
        self.kv.release(sequence)
        sequence.status = SequenceStatus.FINISHED
        del self.sequences[sequence.sequence_id]
        self.ended.append(Ended(sequence.sequence_id, terminal_of(sequence, reason, self.clock(), error)))


def terminal_of(sequence: Sequence, reason: FinishReason, now_s: float, error: TokenwireError | None) -> Terminal:
    """The terminal event of a sequence that ends at `now_s`."""
    stopped = reason is FinishReason.STOP_TOKEN
    started_s = sequence.first_scheduled_s or now_s
    first_s = sequence.first_token_s or now_s
    timings = ModelTimings(
        queue_s=max(0.0, started_s - sequence.arrival_s),
        prefill_s=max(0.0, first_s - started_s),
        decode_s=max(0.0, now_s - first_s),
    )
    usage = Usage(
        prompt_tokens=sequence.num_prompt_tokens - sequence.num_generated_before,
        cached_tokens=sequence.num_cached_tokens,
        completion_tokens=sequence.num_outputs - stopped,
    )
    return Terminal(
        reason=reason,
        usage=usage,
        stop_token_id=sequence.token_ids[-1] if stopped else None,
        error=error,
        model_timings=timings,
    )
