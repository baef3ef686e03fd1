"""Who runs and who waits: who has a place in the batch, blocks and an adapter slot, and whose tokens come next.

There is no prefill phase and no decode phase: every sequence's `num_computed_tokens` catches up with its length, within
a token budget per step. Decodes go first, so a long prompt never stalls them; prefills share the rest in rank order.
Who starts next is `WaitingQueue`'s to say. Among what runs, rank is priority (higher first), then arrival: when blocks
run out the lowest-ranked sequence gives its blocks back and is computed anew later (preemption by recompute), and so
it does for a sequence of a higher priority level that could not start otherwise, for want of blocks, of a place in the
batch or of a slot for its adapter. The highest-ranked one always goes on, so there is no deadlock.

Does not know results, ends or deadlines, nor the device.
"""

import bisect
import heapq
from collections.abc import Mapping

from model_svc.engine.adapter_slots import AdapterSlots
from model_svc.engine.admission_window import AdmissionWindow
from model_svc.engine.batch import RunnerInfo, ScheduledRow
from model_svc.engine.fair_share import FairShare
from model_svc.engine.kv_cache_manager import KVCacheManager, Placement
from model_svc.engine.limits import Limits
from model_svc.engine.sequence import PENDING, Sequence, SequenceStatus
from model_svc.engine.step_budget import StepBudget
from model_svc.engine.stop_checker import reason_to_stop
from model_svc.engine.waiting_queue import WaitingQueue, is_new, rank
from tokenwire.requests import MAX_PRIORITY

MIN_PRIORITY = -MAX_PRIORITY
MAX_PROMPT_LOGPROBS_PER_STEP = 512
"""Prompt positions of a step whose logits are kept, each a row of the vocabulary's size."""

ADAPTER_PATIENCE_S = 2.0
"""How long a sequence whose adapter finds no slot is overtaken by others with adapters."""
CONSTRAINT_POLL_S = 0.001
"""How often an engine that has nothing else to do looks whether a new sequence's constraint is ready."""


class Roster:
    """Every open sequence of one scheduler, waiting or running, and what those that run hold."""

    def __init__(self, info: RunnerInfo, limits: Limits) -> None:
        self.max_batch_size = limits.max_batch_size
        self.max_context_tokens = info.max_context_tokens
        self.whole_sequences = info.whole_sequences
        self.budget = StepBudget(limits.max_step_tokens, limits.max_batch_size)
        self.kv = KVCacheManager(info.num_blocks, info.block_size)
        self.adapters = AdapterSlots(info.num_adapter_slots, info.max_adapter_bytes)
        self.shares = FairShare(limits.tenant_weights)
        self.waiting = WaitingQueue(self.shares)
        self.running: list[Sequence] = []
        """Sorted by rank; each holds blocks for its whole prompt."""
        self.num_preemptions = 0
        self._window = AdmissionWindow(limits.window_s, limits.window_requests)
        self._free_slots = list(range(limits.max_batch_size))

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits."""
        self.waiting.add(sequence)
        self._window.add(sequence.sequence_id)

    def admit(self, now_s: float, *, paused: bool = False) -> None:
        """Move waiting sequences to running while the batch, the budget and the blocks hold them.

        While `paused` nothing new starts; what was preempted goes on.

        A sequence gets the blocks of its whole prompt at once, so that what is being prefilled cannot starve itself.
        """
        self._update_window(now_s)
        num_passed_over, adapter_starves, without_slot = 0, False, set[tuple[str, int]]()
        candidates = self.waiting.in_order()
        if self.waiting.num_new == len(self.waiting) and (paused or not self._window.lets_any_in(self.waiting)):
            candidates = iter(())
        for sequence in candidates:
            new = is_new(sequence)
            if new and (paused or not self._window.lets_in(sequence.sequence_id)):
                continue
            if num_passed_over == self.max_batch_size or self._is_full_for(sequence):
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

    def rows(self) -> list[ScheduledRow]:
        """The next step's rows, without drafts, each with the blocks it writes to. May preempt."""
        rows = self._decodes(self.budget.max_tokens)
        if len(rows) < len(self.running):
            rows += self._prefills({row.sequence.sequence_id for row in rows}, self.budget.max_tokens - len(rows))
        return rows

    def preempt(self, sequence: Sequence) -> None:
        """A running sequence gives its blocks and slots back; it waits, and is computed anew."""
        self.num_preemptions += 1
        sequence.num_preemptions += 1
        self._stop_running(sequence)
        sequence.status = SequenceStatus.WAITING
        self.waiting.add(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence has ended; what it held is free at once."""
        if sequence.status is SequenceStatus.RUNNING:
            self._stop_running(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED

    def opens_s(self, now_s: float, *, paused: bool = False) -> float | None:
        """When `admit` might start something while nothing runs: `now_s` at once, None not before anything changes."""
        if len(self.waiting) > self.waiting.num_new:
            return now_s
        if not self.waiting.num_new or paused:
            return None
        self._update_window(now_s)
        let_in = [each.is_ready for each in self.waiting if self._window.lets_in(each.sequence_id)]
        if any(let_in):
            return now_s
        return now_s + CONSTRAINT_POLL_S if let_in else self._window.opens_s(self.waiting.oldest_arrival_s)

    def check_integrity(self, sequences: Mapping[int, Sequence]) -> None:
        """Raise AssertionError unless lists, states and blocks agree; `sequences`, by id, are all there are."""
        self.kv.check_integrity(sequences.values())
        self.waiting.check_integrity()
        listed = [*self.waiting, *self.running]
        if len(listed) != len(sequences) or {s.sequence_id for s in listed} != set(sequences):
            raise AssertionError("a sequence is in no list, or in two")
        if any(s.status is not SequenceStatus.WAITING or s.block_table or s.slot >= 0 for s in self.waiting):
            raise AssertionError("a waiting sequence has another status, or holds blocks or a slot")
        if any(s.status is not SequenceStatus.RUNNING for s in self.running):
            raise AssertionError("a running sequence has another status")
        if self.running != sorted(self.running, key=rank):
            raise AssertionError("running is not in rank order")
        slots = sorted([s.slot for s in self.running] + self._free_slots)
        if slots != list(range(self.max_batch_size)):
            raise AssertionError("a slot is lost, or has two owners")
        self.adapters.check_integrity([(s.adapter, s.adapter_slot) for s in self.running if s.adapter])

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
                self.preempt(victim)
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
                self.preempt(victim)
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

    def _stop_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.kv.release(sequence)
        heapq.heappush(self._free_slots, sequence.slot)
        sequence.slot = -1
        if sequence.adapter:
            self.adapters.release(sequence.adapter)
            sequence.adapter_slot = -1
