"""Decides what each step computes. Pure Python: knows tokens, blocks and time, not the device.

There is no prefill phase and no decode phase: every sequence's `num_computed_tokens` catches up with its length, within
a token budget per step. Decodes go first, so a long prompt never stalls them; prefills share the rest in rank order.
Who starts next is `WaitingQueue`'s to say. Among what runs, rank is priority (higher first), then arrival: when blocks
run out the lowest-ranked sequence gives its blocks back and is computed anew later (preemption by recompute), and so
it does for a sequence of a higher priority level that could not start otherwise, for want of blocks, of a place in the
batch or of a slot for its adapter. The highest-ranked one always goes on, so there is no deadlock. When a step's memory
runs out its lower half gives way in the same manner (`give_way`).
"""

import bisect
import heapq
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from model_svc.engine.adapter_slots import AdapterSlots
from model_svc.engine.admission_window import AdmissionWindow
from model_svc.engine.batch import AfterDrafts, DraftModel, RunnerInfo, ScheduledBatch, ScheduledRow, StepOutput
from model_svc.engine.deadlines import Deadlines
from model_svc.engine.drafting import SUSPENDED_STEPS, Drafting, DraftLimits, Forcing
from model_svc.engine.events import Ended, EngineLoad, NewTokens
from model_svc.engine.fair_share import FairShare
from model_svc.engine.kv_cache_manager import KVCacheManager, Placement
from model_svc.engine.reachable import Reachable
from model_svc.engine.sequence import PENDING, Sequence, SequenceStatus
from model_svc.engine.start_estimate import StartEstimate
from model_svc.engine.step_budget import StepBudget
from model_svc.engine.stop_checker import reason_to_stop
from model_svc.engine.terminal import FINISH_OF_CANCEL, terminal_of
from model_svc.engine.waiting_queue import WaitingQueue, is_new, rank
from tokenwire.block_hash import is_root_of
from tokenwire.errors import FailedPrecondition, Internal, NotFound, Overloaded, TokenwireError, Unavailable
from tokenwire.requests import MAX_PRIORITY, CancelReason, FinishReason, TokenLogprob

MIN_PRIORITY = -MAX_PRIORITY
NOTHING_DRAFTED = AfterDrafts([])
MAX_PROMPT_LOGPROBS_PER_STEP = 512
"""Prompt positions of a step whose logits are kept, each a row of the vocabulary's size."""

ADAPTER_PATIENCE_S = 2.0
"""How long a sequence whose adapter finds no slot is overtaken by others with adapters."""
CONSTRAINT_POLL_S = 0.001
"""How often an engine that has nothing else to do looks whether a new sequence's constraint is ready."""


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
        self.limits = limits
        self.budget = StepBudget(limits.max_step_tokens, limits.max_batch_size)
        self.kv = KVCacheManager(info.num_blocks, info.block_size)
        self.drafting = Drafting(limits.drafts, self.kv, info.max_context_tokens, draft_model, forcing)
        self.shares = FairShare(limits.tenant_weights)
        self.sequences: dict[int, Sequence] = {}
        self.waiting = WaitingQueue(self.shares)
        self.running: list[Sequence] = []
        """Sorted by rank; each holds blocks for its whole prompt."""
        self.ended: list[Ended] = []
        self.paused = False
        """While set nothing new starts; what runs, or was preempted, goes on."""
        self.draining = False
        """While set and paused, what would have to start ends instead: nobody will resume it."""
        self.num_steps = 0
        self.num_preemptions = 0
        self._window = AdmissionWindow(limits.window_s, limits.window_requests)
        self._estimate = StartEstimate(limits.max_batch_size)
        self._reachable = Reachable(self._estimate, self.waiting, info.max_context_tokens, clock)
        self._computing = False
        """Whether the last step that was scheduled had rows."""
        self._needing_tokens: set[int] = set()
        """Ids of open sequences whose next step cannot be launched before their last token is known."""
        self._free_slots = list(range(limits.max_batch_size))
        self.adapters = AdapterSlots(info.num_adapter_slots, info.max_adapter_bytes)
        self._deadlines = Deadlines(self.sequences)

    @property
    def has_work(self) -> bool:
        """Whether any sequence is open, or its end not taken."""
        return bool(self.sequences or self.ended)

    def idle_s(self) -> float | None:
        """Seconds until a step would do something, if nothing new comes: 0 now, None never."""
        now_s = self.clock()
        if self.running or self.ended:
            return 0.0
        if not self.sequences:
            return None
        due = [self._deadlines.next_s]
        if len(self.waiting) > self.waiting.num_new:
            return 0.0
        if self.waiting.num_new and not self.paused:
            self._update_window(now_s)
            let_in = [each.is_ready for each in self.waiting if self._window.lets_in(each.sequence_id)]
            if any(let_in):
                return 0.0
            due.append(now_s + CONSTRAINT_POLL_S if let_in else self._window.opens_s(self.waiting.oldest_arrival_s))
        next_s = min((at_s for at_s in due if at_s is not None), default=None)
        return max(0.0, next_s - now_s) if next_s is not None else None

    @property
    def can_run_ahead(self) -> bool:
        """Whether a step may be launched before the one before it is collected."""
        return not self._needing_tokens and not self.drafting.needs_known_tokens(self.running)

    def add(self, sequence: Sequence) -> None:
        """Take a new sequence in; it waits. It must fit the context, which admission has checked.

        One that will not start before its deadline ends at once, with an error that says when to retry; so do all
        choices of its request, which come one after the other.
        """
        self.sequences[sequence.sequence_id] = sequence
        if needs_known_tokens(sequence):
            self._needing_tokens.add(sequence.sequence_id)
        unreachable = self._reachable.refusal(sequence) if sequence.deadline_s is not None else None
        self.waiting.add(sequence)
        self._window.add(sequence.sequence_id)
        self._deadlines.add(sequence)
        if unreachable is not None:
            self.fail(sequence, unreachable)
        elif sequence.adapter and sequence.adapter not in self.adapters:
            message = f"options.adapter: {sequence.adapter!r} is not loaded"
            self.fail(sequence, NotFound(message, reason="ADAPTER_NOT_FOUND"))

    def forget_adapter(self, name: str) -> None:
        """An adapter that no sequence uses is gone, and what was computed with it."""
        self.adapters.remove(name)
        self.kv.pool.forget_roots(lambda root: is_root_of(root, name))

    def abort(self, sequence_id: int, reason: CancelReason) -> None:
        """End a sequence now; its blocks are free at once. Unknown or finished ones are ignored."""
        sequence = self.sequences.get(sequence_id)
        if sequence is not None:
            self._finish(sequence, FINISH_OF_CANCEL[reason])

    def schedule(self) -> ScheduledBatch:
        """Choose this step's rows and give them their blocks. May end, start and preempt sequences."""
        now_s = self.clock()
        self._estimate.on_step(now_s, busy=self._computing and bool(self.running))
        self._expire(now_s)
        if self.paused and self.draining:
            self._turn_away()
        self._admit(now_s)
        rows = self._decodes(self.budget.max_tokens)
        if len(rows) < len(self.running):
            rows += self._prefills({row.sequence.sequence_id for row in rows}, self.budget.max_tokens - len(rows))
        rows = self.drafting.draft(rows, self.budget.max_tokens - sum([row.num_new_tokens for row in rows]))
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
        self.budget.grow()
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
            self.shares.charge(tenant, output_tokens=num_tokens)
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
            self.budget.num_out_of_memory += 1
            self.drafting.suspend()
            return f"no drafts for {SUSPENDED_STEPS} steps"
        rows = [row for row in batch.rows if row.sequence.status is SequenceStatus.RUNNING]
        leaving = sorted((row.sequence for row in rows), key=rank)[-(len(rows) // 2) :] if len(rows) > 1 else []
        for sequence in leaving:
            self._preempt(sequence)
        smaller = self.budget.shrink(batch.num_tokens, len(self.running) if leaving else None)
        if not smaller or (self.whole_sequences and not leaving):
            for row in rows:
                message = "the device has no memory left for this sequence, not even when it is computed alone"
                self.fail(row.sequence, Overloaded(message, reason="OUT_OF_MEMORY", retry_after_s=1.0))
        return f"{len(leaving)} preempted, steps of {self.budget.max_tokens} tokens from now"

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
            queued_tokens=self.waiting.num_tokens,
            kv_blocks_used=0 if self.whole_sequences else self.kv.pool.num_used,
            kv_blocks_cached=0 if self.whole_sequences else self.kv.pool.num_cached,
            kv_blocks_total=0 if self.whole_sequences else self.kv.pool.num_blocks,
            step=self.num_steps,
            num_preemptions=self.num_preemptions,
            paused=self.paused,
            num_out_of_memory=self.budget.num_out_of_memory,
            step_budget_tokens=self.budget.max_tokens,
            num_adapters=len(self.adapters),
            num_adapters_on_device=self.adapters.num_on_device,
            adapter_bytes=self.adapters.bytes_on_device,
            drafts=self.drafting.counts(),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless lists, states and blocks agree."""
        self.kv.check_integrity(self.sequences.values())
        self.waiting.check_integrity()
        listed = [*self.waiting, *self.running]
        if len(listed) != len(self.sequences) or {s.sequence_id for s in listed} != set(self.sequences):
            raise AssertionError("a sequence is in no list, or in two")
        if any(s.status is not SequenceStatus.WAITING or s.block_table or s.slot >= 0 for s in self.waiting):
            raise AssertionError("a waiting sequence has another status, or holds blocks or a slot")
        if any(s.status is not SequenceStatus.RUNNING for s in self.running):
            raise AssertionError("a running sequence has another status")
        if self.running != sorted(self.running, key=rank):
            raise AssertionError("running is not in rank order")
        slots = sorted([s.slot for s in self.running] + self._free_slots)
        if slots != list(range(self.limits.max_batch_size)):
            raise AssertionError("a slot is lost, or has two owners")
        self.adapters.check_integrity([(s.adapter, s.adapter_slot) for s in self.running if s.adapter])

    def _expire(self, now_s: float) -> None:
        for sequence in self._deadlines.take_due(now_s):
            self._finish(sequence, FinishReason.DEADLINE)

    def _turn_away(self) -> None:
        message = "the model tier is paused and shutting down: it will not start this request"
        for sequence in [each for each in self.waiting if is_new(each)]:
            self.fail(sequence, Unavailable(message, reason="SHUTTING_DOWN", retry_after_s=1.0))

    def _decodes(self, budget: int) -> list[ScheduledRow]:
        """One row for each running sequence that lacks only its last token, in rank order; preempts for blocks.

        Those of a lower priority than a prompt that is being prefilled leave it half of the budget.
        """
        rows: list[ScheduledRow] = []
        running = list(self.running)
        uncomputed = [len(sequence.token_ids) - sequence.num_computed_tokens for sequence in running]
        prefilling = [sequence.priority for sequence, num in zip(running, uncomputed, strict=True) if num > 1]
        urgent = max(prefilling, default=MIN_PRIORITY)
        for sequence, num_uncomputed in zip(running, uncomputed, strict=True):
            if len(rows) >= (budget if sequence.priority >= urgent else budget // 2):
                break
            if num_uncomputed != 1 or sequence.status is not SequenceStatus.RUNNING or self._is_ending(sequence):
                continue
            while not self.kv.grow(sequence, len(sequence.token_ids)):
                victim = self.running[-1]
                self._preempt(victim)
                if victim is sequence:
                    break
            else:
                rows.append(ScheduledRow(sequence, 1))
        return rows

    def _prefills(self, decoding: set[int], budget: int) -> list[ScheduledRow]:
        """Chunks of the other running sequences, in rank order; where those must be whole, what fits of them.

        The first goes whatever the budget, which running out of memory may have made too small for it.
        """
        rows: list[ScheduledRow] = []
        logprobs_budget = MAX_PROMPT_LOGPROBS_PER_STEP
        for sequence in self.running:
            chunk = min(sequence.num_uncomputed_tokens, budget)
            if sequence.wants_prompt_logprobs:
                chunk = min(chunk, logprobs_budget)
                logprobs_budget -= chunk
            if self.whole_sequences and chunk < sequence.num_uncomputed_tokens:
                chunk = 0 if rows or decoding else sequence.num_uncomputed_tokens
            if chunk > 0 and sequence.sequence_id not in decoding and not self._is_ending(sequence):
                budget -= chunk
                rows.append(ScheduledRow(sequence, chunk))
        return rows

    def _is_ending(self, sequence: Sequence) -> bool:
        """Whether its pending token will be its last whatever it is."""
        token_ids = sequence.token_ids
        if token_ids[-1] != PENDING:
            return False
        return reason_to_stop(sequence, len(token_ids) - 1, self.max_context_tokens) is not None

    def _admit(self, now_s: float) -> None:
        """Move waiting sequences to running while the batch, the budget and the blocks hold them.

        A sequence gets the blocks of its whole prompt at once, so that what is being prefilled cannot starve itself.
        """
        self._update_window(now_s)
        num_passed_over, adapter_starves, without_slot = 0, False, set[tuple[str, int]]()
        candidates = self.waiting.in_order()
        if self.waiting.num_new == len(self.waiting) and (self.paused or not self._window.lets_any_in(self.waiting)):
            candidates = iter(())
        for sequence in candidates:
            new = is_new(sequence)
            if new and (self.paused or not self._window.lets_in(sequence.sequence_id)):
                continue
            if num_passed_over == self.limits.max_batch_size or self._is_full_for(sequence):
                break  # a long queue, for one prefix or behind a full batch, must not cost time in every step
            if not sequence.is_ready or sequence.is_pending:
                continue  # the latter was preempted while its next token was on the way
            if self.kv.awaits_prefix(sequence):
                num_passed_over += 1
                continue
            if sequence.adapter:
                wanted = (sequence.adapter, sequence.priority)
                if adapter_starves or wanted in without_slot or not self._finds_adapter_slot(sequence):
                    without_slot.add(wanted)  # so that a long queue for it costs little
                    adapter_starves = adapter_starves or now_s - sequence.arrival_s > ADAPTER_PATIENCE_S
                    continue
            if self.budget.max_tokens <= self._num_tokens_before(sequence):
                break
            placement = self._place(sequence)
            if placement is Placement.NO_ROOM:
                break
            num_passed_over += placement is Placement.AWAITS_PREFIX
            if placement is Placement.PLACED and new:
                self.shares.charge(sequence.tenant, prompt_tokens=sequence.num_uncomputed_tokens)
                sequence.num_cached_tokens = min(sequence.num_computed_tokens, sequence.num_original_prompt_tokens)

    def _update_window(self, now_s: float) -> None:
        oldest_s = self.waiting.oldest_arrival_s
        self._window.update(
            now_s, num_new=self.waiting.num_new, oldest_arrival_s=oldest_s, idle=not self.running
        )  # fmt: skip

    def _is_full_for(self, sequence: Sequence) -> bool:
        """Whether the batch is full, and of no lower priorities that could be preempted."""
        is_full = not self._free_slots or len(self.running) >= self.budget.max_sequences
        return is_full and self.running[-1].priority >= sequence.priority

    def _finds_adapter_slot(self, sequence: Sequence) -> bool:
        """Whether there is room for its adapter on the device, or lower priorities could make some."""
        if self.adapters.has_room(sequence.adapter):
            return True
        below = self._adapters_held_below(sequence)
        return bool(below) and self.adapters.has_room(sequence.adapter, below)

    def _adapters_held_below(self, sequence: Sequence) -> set[str]:
        """Adapters that running sequences of a lower priority hold, and nobody else."""
        below = {running.adapter for running in self.running if running.priority < sequence.priority}
        return below - {running.adapter for running in self.running if running.priority >= sequence.priority} - {""}

    def _num_tokens_before(self, sequence: Sequence) -> int:
        """Tokens computed before the first of a sequence: decodes of no lower priority, prompts of better rank."""
        own, before = rank(sequence), 0
        for running in self.running:
            num_tokens = running.num_uncomputed_tokens
            if rank(running) < own if num_tokens > 1 else running.priority >= sequence.priority:
                before += num_tokens
        return before

    def _place(self, sequence: Sequence) -> Placement:
        """Move a waiting sequence to running if it gets its blocks and slots, from lower priorities if need be.

        A block for each running sequence stays free, so that what starts does not have to give way at once.
        """
        while True:
            placement = Placement.NO_ROOM
            has_place = self._free_slots and len(self.running) < self.budget.max_sequences
            if has_place and (not sequence.adapter or self.adapters.has_room(sequence.adapter)):
                placement = self.kv.place(sequence, spare=len(self.running))
            leaving = self._to_preempt_for(sequence) if placement is Placement.NO_ROOM else []
            if not leaving:
                break
            for victim in leaving:
                self._preempt(victim)
        if placement is Placement.PLACED:
            self.waiting.remove(sequence)
            sequence.status = SequenceStatus.RUNNING
            sequence.slot = heapq.heappop(self._free_slots)
            sequence.adapter_slot = self.adapters.hold(sequence.adapter) if sequence.adapter else -1
            bisect.insort(self.running, sequence, key=rank)
        return placement

    def _to_preempt_for(self, sequence: Sequence) -> list[Sequence]:
        """Who of lower priorities makes room next for a sequence; nobody where all of them together do not.

        That is the lowest-ranked one; where the adapter finds no slot, all who hold the one that the lowest-ranked of
        those holds whose adapters nobody else holds.
        """
        lower = [s for s in self.running if s.priority < sequence.priority]
        if not lower or not self.kv.has_room_without(sequence, lower, spare=len(self.running) - len(lower)):
            return []
        if not sequence.adapter or self.adapters.has_room(sequence.adapter):
            return [self.running[-1]]
        below = self._adapters_held_below(sequence)
        if not self.adapters.has_room(sequence.adapter, below):
            return []
        given_up = next(s.adapter for s in reversed(lower) if s.adapter in below)
        return [s for s in lower if s.adapter == given_up]

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        sequence.num_preemptions += 1
        self._stop_running(sequence)
        sequence.status = SequenceStatus.WAITING
        self.waiting.add(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.kv.release(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = -1
        if sequence.adapter:
            self.adapters.release(sequence.adapter)
            sequence.adapter_slot = -1

    def _finish(self, sequence: Sequence, reason: FinishReason, error: TokenwireError | None = None) -> None:
        if sequence.status is SequenceStatus.RUNNING:
            self._stop_running(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED
        while sequence.is_pending:  # twice, if a step failed while the next one was on its way
            sequence.token_ids.pop()
        if sequence.first_scheduled_s is not None and sequence.embedding is None:
            self._estimate.on_end(self.clock(), sequence.num_new_outputs)
        self._needing_tokens.discard(sequence.sequence_id)
        self.drafting.forget(sequence)
        del self.sequences[sequence.sequence_id]
        self.ended.append(Ended(sequence.sequence_id, terminal_of(sequence, reason, self.clock(), error)))
        if self.shares.is_full:
            self.shares.forget({each.tenant for each in self.sequences.values()})


def needs_known_tokens(sequence: Sequence) -> bool:
    """Whether what may come next depends on which token came last: constraints, penalties, bans of several ids."""
    if sequence.constraint is not None or sequence.sampling.is_penalised:
        return True
    return any(len(banned) > 1 for banned in sequence.sampling.banned_sequences)
