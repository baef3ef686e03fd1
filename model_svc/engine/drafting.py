"""Gives decode rows drafts to verify, and enters what became of them: the scheduler's part of speculative decoding.

Drafting changes no token: at every position the target model's own choice is made, and drafts are kept while they are
equal to it. Knows who may be drafted for and how far. Does not know the device, nor how a draft is found.
"""

import logging
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

from model_svc.engine.batch import DraftModel, OutOfMemory, ScheduledBatch, ScheduledRow
from model_svc.engine.draft_lengths import FORCED, KINDS, MODEL, DraftLengths
from model_svc.engine.kv_cache_manager import KVCacheManager
from model_svc.engine.ngram_drafts import NgramDrafter
from model_svc.engine.sequence import PENDING, Sequence

log = logging.getLogger(__name__)

MOST_DRAFTS_PER_STEP = 256
"""Drafts of all rows of a step; each has logits of its own, a row of the vocabulary's size."""
LONG_MATCH = 4
"""Tokens in common with an earlier place from which on its drafts are a kind of their own."""
SUSPENDED_STEPS = 1000
MEMORY = 0.99
"""What a row counts in the acceptance of late, against the row after it."""

Undrafted = Literal[
    "off", "penalties", "pending", "no_match", "no_room", "no_gain", "measured", "catching_up", "failed"
]
UNDRAFTED: tuple[Undrafted, ...] = get_args(Undrafted)
"""Why a decode row has no drafts:

- off: the request, or the server's default, does not want any;
- penalties: repetition, presence or frequency penalties change with every draft;
- pending: its last token was still on its way when the step was made;
- no_match: nothing was found to draft;
- no_room: it may make one token more only, or the step's budget or the free KV blocks hold no draft;
- no_gain: as far as is known a draft would cost more than it saves;
- measured: the step was made without drafts to see how long that takes, or to make good what drafts had lost;
- catching_up: the draft model has not computed the sequence's context yet, or had no memory;
- failed: a row of it with drafts gave no number that a token can be drawn from.
"""


class DraftCounts(NamedTuple):
    """Sums since the engine started."""

    num_drafted: int = 0
    """Tokens drafted and verified."""
    num_accepted: int = 0
    """Those of them that were what the model chose."""
    num_rows: int = 0
    """Decode rows with drafts."""
    undrafted: tuple[int, ...] = (0,) * len(UNDRAFTED)
    """Decode rows without, by reason, in the order of UNDRAFTED."""
    acceptance: float = 0.0
    """Of the drafts of the last hundred rows or so, the part that was accepted; no sum. Without forced ones."""
    num_forced: int = 0
    """Of `num_drafted`, those that a constraint left no choice about."""
    num_forced_accepted: int = 0
    """Those of them that were what the model chose."""


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """How drafts are made."""

    max_drafts: int = 0
    """Most drafts of a row; 0: nobody drafts, whatever a request says."""
    by_default: bool = False
    """Whether requests that do not say so are drafted for. Those that ask for it elsewhere get what there is."""
    by_lookup: bool = True
    """Whether by looking for the last tokens further up."""
    by_model: bool = True
    """Whether by the draft model, where there is one and nothing is found."""
    adaptive: bool = True
    """Whether there are only as many as pay, see `DraftLengths`; else as many as there may be."""


class Lookup(Protocol):
    """Finds drafts on the host."""

    def find(self, sequence: Sequence, num_tokens: int) -> tuple[list[int], int]:
        """Up to `num_tokens` tokens that may follow the sequence's, all known, and how many of its own say so."""

    def forget(self, sequence: Sequence) -> None:
        """It has ended."""


class Forcing(Protocol):
    """Knows what constraints leave no choice about."""

    def forced(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """Up to `num_tokens` tokens of what must follow the sequence's, all known, as it is likely cut; often none."""


class Drafting:
    """Drafts for one scheduler's sequences."""

    def __init__(
        self,
        limits: DraftLimits,
        kv: KVCacheManager,
        max_context_tokens: int,
        draft_model: DraftModel | None = None,
        forcing: Forcing | None = None,
    ) -> None:
        self.limits = limits
        self.draft_model = draft_model
        self._kv = kv
        self._max_context_tokens = max_context_tokens
        self.lookup: Lookup = NgramDrafter()
        self.forcing = forcing
        self.lengths = DraftLengths(limits.max_drafts) if limits.adaptive else None
        self._in_flight: dict[int, int] = {}
        """By id of each sequence with drafts whose step has been launched and not entered: their kind."""
        self._kinds: dict[int, int] = {}
        """By id: the kind of the drafts in the step that is being made."""
        self._num_asked = self._num_caught_up = 0
        """Sequences that the draft model was asked about for the step made last, and tokens of contexts it computed."""
        self._given_up: set[int] = set()
        """Ids of sequences that are not drafted for any more."""
        self._num_suspended = 0
        """Steps that are still to be made without drafts."""
        self._num_drafted = self._num_accepted = self._num_rows = 0
        self._num_forced = self._num_forced_accepted = 0
        self._lately_drafted = self._lately_accepted = 0.0
        self._undrafted: dict[Undrafted, int] = dict.fromkeys(UNDRAFTED, 0)

    def counts(self) -> DraftCounts:
        """What was drafted up to now."""
        return DraftCounts(
            self._num_drafted, self._num_accepted, self._num_rows, tuple(self._undrafted.values()),
            self._lately_accepted / self._lately_drafted if self._lately_drafted else 0.0,
            self._num_forced, self._num_forced_accepted,
        )  # fmt: skip

    def needs_known_tokens(self, running: Rows[Sequence]) -> bool:
        """Whether the next step must not be launched before the tokens on their way are known."""
        return bool(self._in_flight) or any(map(self._is_drafting, running))

    def draft(self, rows: list[ScheduledRow], budget: int) -> list[ScheduledRow]:
        """Add drafts to a step's rows, up to `budget` in all. A block for each row stays free of them."""
        self._kinds, self._num_asked, self._num_caught_up = {}, 0, 0
        if not self.limits.max_drafts:
            return rows
        if self._num_suspended:
            self._num_suspended -= 1
            return rows
        if self.lengths is not None:
            self.lengths.begin_step(sum([row.samples and row.num_new_tokens == 1 for row in rows]))
        left, spare = min(budget, MOST_DRAFTS_PER_STEP), len(rows)
        made, asked = list(rows), list[tuple[int, int]]()
        for index, row in enumerate(rows):
            if row.samples and row.num_new_tokens == 1:
                found = self._obstacle(row.sequence) or self._found(row.sequence, left, spare)
                number = self._asked(row.sequence, left, spare) if found == "no_match" and self._uses_model else found
                if isinstance(number, int):
                    asked.append((index, number))
                    left -= number
                else:
                    made[index] = self._settled(row, number)
                    left -= len(made[index].drafts)
        self._num_asked = len(asked)
        if asked:
            proposed = self._proposed([(rows[index].sequence, number) for index, number in asked])
            for (index, _), drafts in zip(asked, proposed, strict=True):
                made[index] = self._settled(rows[index], drafts or "catching_up")
        return made

    def launched(self, rows: Rows[ScheduledRow]) -> None:
        """A step is on its way."""
        for row in rows:
            if row.drafts:
                self._in_flight[row.sequence.sequence_id] = self._kinds[row.sequence.sequence_id]

    def verified(self, row: ScheduledRow, token_id: int, after: Rows[int]) -> int:
        """How many of the row's drafts are right: the first is what was sampled, each next what was `after` the last.

        To be called before the sequence can have ended with any of them.
        """
        kind = self._in_flight.pop(row.sequence.sequence_id)
        pairs = zip(row.drafts, (token_id, *after), strict=False)
        num_equal = next((at for at, (draft, sampled) in enumerate(pairs) if draft != sampled), len(row.drafts))
        num_accepted = min(num_equal, len(after))
        if self.lengths is not None:
            self.lengths.verified(row.sequence.sequence_id, kind, len(row.drafts), num_accepted)
        self._num_rows += 1
        self._num_drafted += len(row.drafts)
        self._num_accepted += num_accepted
        if kind == FORCED:
            self._num_forced += len(row.drafts)
            self._num_forced_accepted += num_accepted
        else:
            self._lately_drafted = MEMORY * self._lately_drafted + len(row.drafts)
            self._lately_accepted = MEMORY * self._lately_accepted + num_accepted
        return num_accepted

    def took(self, batch: ScheduledBatch, num_tokens: int, seconds: float) -> None:
        """A step has given so many tokens after so long."""
        if self.lengths is not None and all([row.samples and row.num_own_tokens == 1 for row in batch.rows]):
            num_rows, num_drafts = len(batch.rows), batch.num_drafts
            num_drafted_rows = sum([bool(row.drafts) for row in batch.rows]) if num_drafts else 0
            self.lengths.observe(
                num_rows,
                num_drafted_rows,
                num_drafts,
                max(0, num_tokens - num_rows),
                seconds,
                modelled=self._num_asked > 0,
                num_caught_up=self._num_caught_up,
            )

    def give_up(self, sequence: Sequence) -> None:
        """A row with drafts of it has failed: never again."""
        self._in_flight.pop(sequence.sequence_id, None)
        self._given_up.add(sequence.sequence_id)

    def suspend(self) -> None:
        """The device had no memory for a step with drafts: do without them for SUSPENDED_STEPS."""
        self._num_suspended = SUSPENDED_STEPS

    def forget(self, sequence: Sequence) -> None:
        """It has ended."""
        self._in_flight.pop(sequence.sequence_id, None)
        self._given_up.discard(sequence.sequence_id)
        self.lookup.forget(sequence)
        if self.draft_model is not None:
            self.draft_model.forget(sequence)
        if self.lengths is not None:
            self.lengths.forget(sequence.sequence_id)

    def _settled(self, row: ScheduledRow, found: list[int] | Undrafted) -> ScheduledRow:
        """A decode row with what was found for it, or without anything, counted by reason."""
        drafts: list[int] = []
        if isinstance(found, str):
            self._undrafted[found] += 1
        else:
            drafts = found
        if self.lengths is not None and found not in ("off", "failed"):
            self.lengths.considered(row.sequence.sequence_id, len(drafts))
        return ScheduledRow(row.sequence, 1, drafts) if drafts else row

    def _found(self, sequence: Sequence, left: int, spare: int) -> list[int] | Undrafted:
        """What there is to verify for a sequence that may be drafted for, or why nothing. May give it blocks."""
        most = self._most(sequence, left)
        if most < 1:
            return "no_room"
        why: Undrafted = "no_match"
        for drafts, kind in self._candidates(sequence, most):
            if self.lengths is not None:
                if not self.lengths.is_drafting:
                    return "measured"
                drafts = drafts[: self.lengths.most(sequence.sequence_id, kind)]
                if not drafts:
                    why = "no_gain"
                    continue
            drafts = drafts[: self._room(sequence, len(drafts), spare)]
            self._kinds[sequence.sequence_id] = kind
            return drafts or "no_room"
        return why

    def _candidates(self, sequence: Sequence, most: int) -> Iterator[tuple[list[int], int]]:
        """Up to `most` drafts and their kind, the likeliest kind first: what is forced, then what a look-up gives."""
        if self.forcing is not None and sequence.constraint is not None:
            drafts = self.forcing.forced(sequence, most)
            if drafts:
                yield drafts, FORCED
        if self._uses_lookup:
            drafts, num_matching = self.lookup.find(sequence, most)
            if drafts:
                yield drafts, KINDS.index("short_match" if num_matching < LONG_MATCH else "long_match")

    def _asked(self, sequence: Sequence, left: int, spare: int) -> int | Undrafted:
        """How many drafts to ask the draft model for, or why none. May give the sequence blocks."""
        if self.draft_model is None:
            return "no_match"
        num_drafts = min(self._most(sequence, left), self.draft_model.most(sequence))
        num_behind = self.draft_model.num_behind(sequence)
        if self.lengths is not None and num_drafts:
            if not self.lengths.is_drafting:
                return "measured"
            num_drafts = min(num_drafts, self.lengths.most(sequence.sequence_id, MODEL, num_behind))
            if not num_drafts:
                return "no_gain"
        num_drafts = self._room(sequence, num_drafts, spare) if num_drafts else 0
        self._kinds[sequence.sequence_id] = MODEL
        if num_drafts and num_behind > self.limits.max_drafts + 1:
            self._num_caught_up += num_behind
        return num_drafts or "no_room"

    def _proposed(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        """What the draft model proposes; nothing where the device has no memory for it."""
        try:
            return self.draft_model.propose(wanted) if self.draft_model is not None else [[] for _ in wanted]
        except OutOfMemory as error:
            log.warning(
                "out of memory in a step of the draft model: no drafts for %d steps (%s)", SUSPENDED_STEPS, error
            )
            self.suspend()
            return [[] for _ in wanted]

    def _most(self, sequence: Sequence, left: int) -> int:
        """Drafts that may be verified at once: one token at least follows them."""
        return min(self.limits.max_drafts, sequence.num_outputs_left(self._max_context_tokens) - 1, left)

    @property
    def _uses_lookup(self) -> bool:
        return self.limits.by_lookup or not self.limits.by_default

    @property
    def _uses_model(self) -> bool:
        return self.draft_model is not None and (self.limits.by_model or not self.limits.by_default)

    def _room(self, sequence: Sequence, num_drafts: int, spare: int) -> int:
        """For how many of the drafts the sequence has blocks, or gets free ones."""
        num_tokens = len(sequence.token_ids)
        missing = self._kv.num_missing(sequence, num_tokens + num_drafts)
        if missing and missing + spare <= self._kv.pool.num_free:
            self._kv.grow(sequence, num_tokens + num_drafts)
            missing = 0
        held = len(sequence.block_table) * self._kv.block_size - num_tokens
        return num_drafts if not missing else min(num_drafts, held)

    def _is_drafting(self, sequence: Sequence) -> bool:
        """Whether drafts are to be looked for once its tokens are known."""
        if self._obstacle(sequence) not in (None, "pending"):
            return False
        return self.lengths is None or not self.lengths.is_idle(sequence.sequence_id)

    def _obstacle(self, sequence: Sequence) -> Undrafted | None:
        """What keeps this sequence from being drafted for, if anything does."""
        wanted = self.limits.by_default if sequence.speculation is None else sequence.speculation
        if not wanted or not self.limits.max_drafts or sequence.embedding is not None:
            return "off"
        if sequence.sequence_id in self._given_up:
            return "failed"
        if sequence.sampling.is_penalised:
            return "penalties"
        return "pending" if sequence.token_ids[-1] == PENDING else None
