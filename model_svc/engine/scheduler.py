"""Decides what each step computes. Pure Python: knows tokens, blocks and time, not the device.

A step is made (`schedule`), goes on its way (`launched`) and is entered (`update`). Who runs meanwhile and who waits,
and so which tokens of whom come next, is the `Roster`'s business; drafts are `Drafting`'s. When a step's memory runs
out its lower half gives way (`give_way`). Every sequence ends here, once, with an `Ended`.
"""

import time
from collections.abc import Callable

from model_svc.engine.batch import AfterDrafts, DraftModel, RunnerInfo, ScheduledBatch, ScheduledRow, StepOutput
from model_svc.engine.deadlines import Deadlines
from model_svc.engine.drafting import SUSPENDED_STEPS, Drafting, Forcing
from model_svc.engine.events import Ended, EngineLoad, NewTokens
from model_svc.engine.limits import Limits
from model_svc.engine.reachable import Reachable
from model_svc.engine.roster import Roster
from model_svc.engine.sequence import PENDING, Sequence, SequenceStatus
from model_svc.engine.start_estimate import StartEstimate
from model_svc.engine.stop_checker import reason_to_stop
from model_svc.engine.terminal import FINISH_OF_CANCEL, terminal_of
from model_svc.engine.waiting_queue import is_new, rank
from tokenwire.block_hash import is_root_of
from tokenwire.errors import FailedPrecondition, Internal, NotFound, Overloaded, TokenwireError, Unavailable
from tokenwire.requests import CancelReason, FinishReason, TokenLogprob

NOTHING_DRAFTED = AfterDrafts([])


class Scheduler:
    """Owns every sequence from `add` until its `Ended` is taken.

    Raises FailedPrecondition when the pool cannot hold one sequence of the full context. `clock` is monotonic seconds.
    """

    def __init__(
        self,
        info: RunnerInfo,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        draft_model: DraftModel | None = None,
        forcing: Forcing | None = None,
    ) -> None:
        if info.num_blocks * info.block_size < info.max_context_tokens:
            held = info.num_blocks * info.block_size
            message = f"the KV cache holds {held} tokens, less than one context of {info.max_context_tokens}"
            raise FailedPrecondition(f"{message}: give more --kv-memory or a smaller --max-context-tokens")
        self.clock = clock
        self.max_context_tokens = info.max_context_tokens
        self.whole_sequences = info.whole_sequences
        self.roster = Roster(info, limits)
        self.kv = self.roster.kv
        self.drafting = Drafting(limits.drafts, self.kv, info.max_context_tokens, draft_model, forcing)
        self.sequences: dict[int, Sequence] = {}
        self.ended: list[Ended] = []
        self.paused = False
        """While set nothing new starts; what runs, or was preempted, goes on."""
        self.draining = False
        """While set and paused, what would have to start ends instead: nobody will resume it."""
        self.num_steps = 0
        self._estimate = StartEstimate(limits.max_batch_size)
        self._reachable = Reachable(self._estimate, self.roster.waiting, info.max_context_tokens, clock)
        self._computing = False
        """Whether the last step that was scheduled had rows."""
        self._needing_tokens: set[int] = set()
        """Ids of open sequences whose next step cannot be launched before their last token is known."""
        self._deadlines = Deadlines(self.sequences)

    @property
    def has_work(self) -> bool:
        """Whether any sequence is open, or its end not taken."""
        return bool(self.sequences or self.ended)

    def idle_s(self) -> float | None:
        """Seconds until a step would do something, if nothing new comes: 0 now, None never."""
        if self.roster.running or self.ended:
            return 0.0
        if not self.sequences:
            return None
        now_s = self.clock()
        due = (self._deadlines.next_s, self.roster.opens_s(now_s, paused=self.paused))
        next_s = min((at_s for at_s in due if at_s is not None), default=None)
        return max(0.0, next_s - now_s) if next_s is not None else None

    @property
    def can_run_ahead(self) -> bool:
        """Whether a step may be launched before the one before it is collected."""
        return not self._needing_tokens and not self.drafting.needs_known_tokens(self.roster.running)

    def add(self, sequence: Sequence) -> None:
        """Take a new sequence in; it waits. It must fit the context, which admission has checked.

        One that will not start before its deadline ends at once, with an error that says when to retry; so do all
        choices of its request, which come one after the other.
        """
        self.sequences[sequence.sequence_id] = sequence
        if needs_known_tokens(sequence):
            self._needing_tokens.add(sequence.sequence_id)
        unreachable = self._reachable.refusal(sequence) if sequence.deadline_s is not None else None
        self.roster.add(sequence)
        self._deadlines.add(sequence)
        if unreachable is not None:
            self.fail(sequence, unreachable)
        elif sequence.adapter and sequence.adapter not in self.roster.adapters:
            message = f"options.adapter: {sequence.adapter!r} is not loaded"
            self.fail(sequence, NotFound(message, reason="ADAPTER_NOT_FOUND"))

    def add_adapter(self, name: str, num_bytes: int) -> None:
        """There is an adapter of this name, which sequences may use."""
        self.roster.adapters.add(name, num_bytes)

    def forget_adapter(self, name: str) -> None:
        """An adapter that no sequence uses is gone, and what was computed with it."""
        self.roster.adapters.remove(name)
        self.kv.pool.forget_roots(lambda root: is_root_of(root, name))

    def abort(self, sequence_id: int, reason: CancelReason) -> None:
        """End a sequence now; its blocks are free at once. Unknown or finished ones are ignored."""
        sequence = self.sequences.get(sequence_id)
        if sequence is not None:
            self._finish(sequence, FINISH_OF_CANCEL[reason])

    def schedule(self) -> ScheduledBatch:
        """Choose this step's rows and give them their blocks. May end, start and preempt sequences."""
        now_s = self.clock()
        self._estimate.on_step(now_s, busy=self._computing and bool(self.roster.running))
        self._expire(now_s)
        if self.paused and self.draining:
            self._turn_away()
        self.roster.admit(now_s, paused=self.paused)
        rows = self.roster.rows()
        left = self.roster.budget.max_tokens - sum([row.num_new_tokens for row in rows])
        rows = self.drafting.draft(rows, left)
        for row in rows:
            if row.sequence.first_scheduled_s is None:
                row.sequence.first_scheduled_s = now_s
        self._computing = bool(rows)
        return ScheduledBatch(tuple(rows))

    def launched(self, batch: ScheduledBatch) -> None:
        """A batch is on its way: go on as if its tokens were there, the sampled ones PENDING; drafts do not count."""
        self.drafting.launched(batch.rows)
        for row in batch.rows:
            row.sequence.num_computed_tokens = row.own_end
            if row.samples:
                row.sequence.token_ids.append(PENDING)

    def update(self, batch: ScheduledBatch, output: StepOutput) -> NewTokens:
        """Enter what the runner computed. Returns the new output tokens and the log-probabilities asked for."""
        self.num_steps += 1
        self.roster.budget.grow()
        new = NewTokens()
        served: dict[str, int] = {}
        errors, prompt_logprobs, logprobs, vectors = (
            output.errors, output.prompt_logprobs, output.logprobs, output.vectors
        )  # fmt: skip
        for index, (row, token_id) in enumerate(zip(batch.rows, output.token_ids, strict=True)):
            sequence = row.sequence
            if sequence.status is SequenceStatus.FINISHED:
                continue
            if index in errors:
                self._enter_error(row, errors[index])
                continue
            if row.num_preemptions == sequence.num_preemptions:
                self.kv.commit(sequence, row.own_end)
            if index in prompt_logprobs:
                num_given = sequence.num_prompt_logprobs - row.prompt_logprob_positions.start
                new.prompt_logprobs[sequence.sequence_id] = prompt_logprobs[index][num_given:]
                sequence.num_prompt_logprobs = row.prompt_logprob_positions.stop
            if token_id is not None:
                sequence.token_ids[row.own_end] = token_id
                num_served, after = 1, output.after_drafts.get(index, NOTHING_DRAFTED)
                num_accepted = self.drafting.verified(row, token_id, after.token_ids) if row.drafts else 0
                self._enter_token(sequence, row.own_end, logprobs.get(index), new)
                if num_accepted:
                    num_served += self._enter_drafts(row, num_accepted, after, new)
                served[sequence.tenant] = served.get(sequence.tenant, 0) + num_served
            elif index in output.completed:
                self._finish(sequence, FinishReason.STOP_TOKEN)
            elif index in vectors:
                sequence.vector, sequence.first_token_s = vectors[index], self.clock()
                self._finish(sequence, FinishReason.LENGTH)
        for tenant, num_tokens in served.items():
            self.roster.shares.charge(tenant, output_tokens=num_tokens)
        return new

    def _enter_error(self, row: ScheduledRow, error: TokenwireError) -> None:
        """A row came to nothing: it is made again where drafts may be to blame, else its sequence ends."""
        if row.drafts:
            self._do_without_drafts(row)
            return
        if isinstance(error, Internal):
            self.kv.forget(row.sequence)
        self.fail(row.sequence, error)

    def _enter_token(self, sequence: Sequence, index: int, logprob: TokenLogprob | None, new: NewTokens) -> None:
        """`token_ids[index]` became known: give it out, and end the sequence if it says so."""
        if sequence.first_token_s is None:
            sequence.first_token_s = self.clock()
        reason = reason_to_stop(sequence, index, self.max_context_tokens)
        if reason is not FinishReason.STOP_TOKEN:
            new.sequence_ids.append(sequence.sequence_id)
            new.token_ids.append(sequence.token_ids[index])
            if logprob is not None:
                new.logprobs.setdefault(sequence.sequence_id, []).append(logprob)
        if reason is not None:
            self._finish(sequence, reason)

    def _enter_drafts(self, row: ScheduledRow, num_accepted: int, after: AfterDrafts, new: NewTokens) -> int:
        """Enter what followed the row's right drafts, which are in the cache. Returns how many tokens were entered."""
        sequence = row.sequence
        for number in range(num_accepted):
            if sequence.status is SequenceStatus.FINISHED:
                return number
            index = row.own_end + number + 1
            sequence.token_ids.append(after.token_ids[number])
            if row.num_preemptions == sequence.num_preemptions:
                sequence.num_computed_tokens = index
                self.kv.commit(sequence, index)
            self._enter_token(sequence, index, after.logprobs[number] if after.logprobs else None, new)
        return num_accepted

    def _do_without_drafts(self, row: ScheduledRow) -> None:
        """A row with drafts has failed: perhaps for their sake, so it is made again without any."""
        self.drafting.give_up(row.sequence)
        row.sequence.token_ids.pop()
        if row.num_preemptions == row.sequence.num_preemptions:
            row.sequence.num_computed_tokens = row.start

    def give_way(self, batch: ScheduledBatch) -> str:
        """The device had no memory for this step: its lowest-ranked half is preempted, and steps get smaller.

        A single sequence is given smaller chunks; it ends with Overloaded when those fail too. Where there were drafts,
        nothing is drafted for a while instead. Returns what is done, in words.
        """
        if batch.num_drafts:
            self.roster.budget.num_out_of_memory += 1
            self.drafting.suspend()
            return f"no drafts for {SUSPENDED_STEPS} steps"
        rows = [row for row in batch.rows if row.sequence.status is SequenceStatus.RUNNING]
        leaving = sorted((row.sequence for row in rows), key=rank)[-(len(rows) // 2) :] if len(rows) > 1 else []
        for sequence in leaving:
            self.roster.preempt(sequence)
        smaller = self.roster.budget.shrink(batch.num_tokens, len(self.roster.running) if leaving else None)
        if not smaller or (self.whole_sequences and not leaving):
            for row in rows:
                message = "the device has no memory left for this sequence, not even when it is computed alone"
                self.fail(row.sequence, Overloaded(message, reason="OUT_OF_MEMORY", retry_after_s=1.0))
        return f"{len(leaving)} preempted, steps of {self.roster.budget.max_tokens} tokens from now"

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
            running=len(self.roster.running),
            queued=len(self.roster.waiting),
            queued_tokens=self.roster.waiting.num_tokens,
            kv_blocks_used=0 if self.whole_sequences else self.kv.pool.num_used,
            kv_blocks_cached=0 if self.whole_sequences else self.kv.pool.num_cached,
            kv_blocks_total=0 if self.whole_sequences else self.kv.pool.num_blocks,
            step=self.num_steps,
            num_preemptions=self.roster.num_preemptions,
            paused=self.paused,
            num_out_of_memory=self.roster.budget.num_out_of_memory,
            step_budget_tokens=self.roster.budget.max_tokens,
            num_adapters=len(self.roster.adapters),
            num_adapters_on_device=self.roster.adapters.num_on_device,
            adapter_bytes=self.roster.adapters.bytes_on_device,
            drafts=self.drafting.counts(),
            oldest_queued_s=self.roster.waiting.oldest_arrival_s,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless lists, states and blocks agree."""
        self.roster.check_integrity(self.sequences)

    def _expire(self, now_s: float) -> None:
        for sequence in self._deadlines.take_due(now_s):
            self._finish(sequence, FinishReason.DEADLINE)

    def _turn_away(self) -> None:
        message = "the model tier is paused and shutting down: it will not start this request"
        for sequence in [each for each in self.roster.waiting if is_new(each)]:
            self.fail(sequence, Unavailable(message, reason="SHUTTING_DOWN", retry_after_s=1.0))

    def _finish(self, sequence: Sequence, reason: FinishReason, error: TokenwireError | None = None) -> None:
        self.roster.leave(sequence)
        while sequence.is_pending:  # twice, if a step failed while the next one was on its way
            sequence.token_ids.pop()
        if sequence.first_scheduled_s is not None and sequence.embedding is None:
            self._estimate.on_end(self.clock(), sequence.num_new_outputs)
        self._needing_tokens.discard(sequence.sequence_id)
        self.drafting.forget(sequence)
        del self.sequences[sequence.sequence_id]
        self.ended.append(Ended(sequence.sequence_id, terminal_of(sequence, reason, self.clock(), error)))
        if self.roster.shares.is_full:
            self.roster.shares.forget({each.tenant for each in self.sequences.values()})


def needs_known_tokens(sequence: Sequence) -> bool:
    """Whether what may come next depends on which token came last: constraints, penalties, bans of several ids."""
    if sequence.constraint is not None or sequence.sampling.is_penalised:
        return True
    return any(len(banned) > 1 for banned in sequence.sampling.banned_sequences)
