"""How far it pays to draft for a sequence in a step, from what was accepted and what steps take.

A draft is worth the tokens that it saves, as long as a step without drafts takes for them; it costs what the step grows
by. Accepted ones are counted for each sequence and each kind of draft, a new sequence being taken for what others were
like. Where drafts do not pay there are none, but for a rare one that looks whether that is still so. And whatever is
expected: what drafts have cost beyond what they saved is kept account of, and past a share of the time spent there
are none until it has shrunk. Pure arithmetic: knows neither tokens nor the device.
"""

from dataclasses import dataclass, field

from model_svc.engine.step_costs import Added, StepCosts

KINDS = ("short_match", "long_match", "model", "forced")
"""Where a draft comes from: two or three tokens in common with an earlier place, more of them, a draft model, or what a
constraint leaves no choice about."""

MEMORY = 0.85
"""What a row's drafts count, against the next ones."""
DISMAY = 0.5
"""What drafts that were right count against a row of which none is: what helped may be over."""
MOST_RIGHT = 16.0
"""What drafts that were right count at most, all together."""
PRIOR_WEIGHT = 1.0
"""Drafts that what others were like counts for."""
SHARED_PRIOR, SHARED_WEIGHT = 0.5, 4.0
"""What drafts are taken for while none has been verified."""
PLAIN_EVERY = 50
"""After so many steps with drafts one goes without, to see what that takes now."""
FIRST_PROBE, LAST_PROBE = 16, 256
"""Rows of a sequence between drafts that only look whether they would pay: at first, and after some failures."""
LEDGER_MEMORY = 0.995
MARGIN = 1.25
"""What drafts must promise for what they cost: both are estimates, and a token saved where nobody waits saves less."""
PROBE_SHARE = 0.01
"""Of the time spent: what may have been lost when a probe is made."""
MOST_LOST_SHARE = 0.02
"""Past it nothing is drafted."""
MOST_SAVED_SHARE = 0.02
"""More than this of the time is not held in favour of drafts: what helped before may help no more."""
MOST_LATE = 2.0
"""A step counts at most this many times what was expected: one that something else held up is not the drafts' doing."""
MODEL, FORCED = KINDS.index("model"), KINDS.index("forced")
CATCH_UP_TOKENS = 16
"""Tokens of a context that a draft model is taken to compute in the time of a step, until it has been seen."""
CATCH_UP_MEMORY = 0.7
FIRST_CATCH_UP_SHARE = 0.03
"""Of the time spent: what may have been lost when a draft model nothing is known of computes its first contexts."""
LEAST_VERIFIED = 4.0
"""Drafts of a model after which something is known of it."""
CATCH_UP_ROWS = 32
"""Rows that a context once computed is taken to serve."""
IDLE_ROWS, IDLE_EVERY = 8, 16
"""A sequence without drafts for so long is looked at every so many rows, where looking costs more than a look-up."""


@dataclass(slots=True)
class Acceptance:
    """Drafts that were right, and rows in which one was wrong."""

    right: float = 0.0
    wrong: float = 0.0

    def enter(self, num_drafts: int, num_accepted: int) -> None:
        """A row's drafts were verified: what comes after the first wrong one says nothing."""
        self.right = min(MOST_RIGHT, (MEMORY if num_accepted else DISMAY) * self.right + num_accepted)
        self.wrong = MEMORY * self.wrong + (num_accepted < num_drafts)

    def rate(self, prior: float, weight: float) -> float:
        """How likely the next draft is right, if those before it are."""
        return (self.right + weight * prior) / (self.right + self.wrong + weight)


@dataclass(slots=True)
class OfSequence:
    """What is known of one sequence."""

    accepted: dict[int, Acceptance] = field(default_factory=dict)
    """By kind of draft."""
    num_rows: int = 0
    """Decode rows that drafts were considered for."""
    num_idle: int = 0
    """Of these, the last ones without any."""
    next_probe: int = 0
    """The row from which on a probe may be made."""
    probe_every: int = FIRST_PROBE


@dataclass(frozen=True, slots=True)
class Prices:
    """What drafts must save in a step that is being made, in tokens: MARGIN times what would else be made meanwhile."""

    per_row: float
    per_draft: float
    added: Added
    per_s: float
    """For each second that something else takes."""


class DraftLengths:
    """For one engine. `longest`: most drafts of a row."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.costs = StepCosts()
        self._shared = [Acceptance() for _ in KINDS]
        self._by_sequence: dict[int, OfSequence] = {}
        self._prices: tuple[Prices, ...] = ()
        """Of the step that is being made, looked up and by a draft model; none: there shall be no drafts in it."""
        self._catch_up_s: float | None = None
        """What a draft model takes for a token of a context; None: no step has been timed yet."""
        self._spent_s = 0.0
        """Time of the last steps."""
        self._lost_s = 0.0
        """What drafts took of it beyond what they saved."""
        self._probed_s = 0.0
        """What the probes of the step that is being made will take."""

    @property
    def is_drafting(self) -> bool:
        """Whether drafts are considered in the step that is being made."""
        return bool(self._prices)

    def begin_step(self, num_rows: int) -> None:
        """A step of so many rows is being made."""
        plain_s = self.costs.plain_s(num_rows)
        self._prices, self._probed_s = (), 0.0
        if (
            plain_s and self.costs.since_plain(num_rows) < PLAIN_EVERY
            and self._lost_s <= MOST_LOST_SHARE * self._spent_s
        ):  # fmt: skip
            tokens_per_s = MARGIN * num_rows / plain_s
            both = (self.costs.added(num_rows, modelled=modelled) for modelled in (False, True))
            self._prices = tuple(
                Prices(tokens_per_s * added.per_row, tokens_per_s * added.per_draft, added, tokens_per_s)
                for added in both
            )
            if self._catch_up_s is None:
                self._catch_up_s = plain_s / CATCH_UP_TOKENS

    def most(self, sequence_id: int, kind: int, num_behind: int = 0) -> int:
        """How many drafts of that kind to verify for a sequence in this step. 0: none pay.

        `num_behind`: tokens that would have to be computed first, once.
        """
        known = self._of(sequence_id)
        if not self._prices:
            return 0
        prices, rate = self._prices[kind == MODEL], self._rate(known, kind)
        length, gain, right = 0, -prices.per_row, 1.0
        while length < self.longest and right * rate > prices.per_draft:
            right *= rate
            gain += right - prices.per_draft
            length += 1
        cost_s = (self._catch_up_s or 0.0) * max(0, num_behind - self.longest - 1)
        verified = self._shared[kind].right + self._shared[kind].wrong
        if gain > 0 and (not cost_s or (verified >= LEAST_VERIFIED and CATCH_UP_ROWS * gain > cost_s * prices.per_s)):
            return length
        share = PROBE_SHARE
        if gain > 0 and verified < LEAST_VERIFIED:
            share = FIRST_CATCH_UP_SHARE
        cost_s += prices.added.per_row + prices.added.per_draft
        lost_s = self._lost_s + self._probed_s + cost_s
        if known.num_rows < known.next_probe or lost_s > share * self._spent_s:
            return 0
        self._probed_s += cost_s
        known.next_probe = known.num_rows + known.probe_every
        known.probe_every = min(2 * known.probe_every, LAST_PROBE)
        return 1

    def considered(self, sequence_id: int, num_drafts: int) -> None:
        """A decode row of the sequence is made, with so many drafts."""
        known = self._of(sequence_id)
        known.num_rows += 1
        known.num_idle = 0 if num_drafts else known.num_idle + 1

    def is_idle(self, sequence_id: int) -> bool:
        """Whether the next row of the sequence need not be looked at, since nothing came of it for a while."""
        known = self._by_sequence.get(sequence_id)
        return known is not None and known.num_idle >= IDLE_ROWS and known.num_rows % IDLE_EVERY > 0

    def verified(self, sequence_id: int, kind: int, num_drafts: int, num_accepted: int) -> None:
        """What became of a row's drafts."""
        known = self._of(sequence_id)
        known.accepted.setdefault(kind, Acceptance()).enter(num_drafts, num_accepted)
        self._shared[kind].enter(num_drafts, num_accepted)
        if num_accepted:
            known.probe_every = FIRST_PROBE

    def observe(
        self,
        num_rows: int,
        num_drafted_rows: int,
        num_drafts: int,
        num_accepted: int,
        seconds: float,
        *,
        modelled: bool = False,
        num_caught_up: int = 0,
    ) -> None:
        """A step of decodes alone took so long.

        `modelled`: a draft model was asked; `num_caught_up`: it computed so many tokens of contexts, once for ever.
        """
        plain_s = self.costs.plain_s(num_rows)
        self._spent_s = LEDGER_MEMORY * self._spent_s + seconds
        self._lost_s *= LEDGER_MEMORY
        if num_caught_up:
            if plain_s is not None:
                self._lost_s += max(0.0, seconds - plain_s * (1 + num_accepted / num_rows))
                a_token_s = max(0.0, seconds - plain_s) / num_caught_up
                self._catch_up_s = CATCH_UP_MEMORY * (self._catch_up_s or a_token_s) + (1 - CATCH_UP_MEMORY) * a_token_s
            return
        if num_drafts and plain_s is not None:
            added = self.costs.added(num_rows, modelled=modelled)
            expected_s = plain_s + num_drafted_rows * added.per_row + num_drafts * added.per_draft
            lost_s = min(seconds, MOST_LATE * expected_s) - plain_s * (1 + num_accepted / num_rows)
            self._lost_s = max(-MOST_SAVED_SHARE * self._spent_s, self._lost_s + lost_s)
        self.costs.observe(num_rows, num_drafted_rows, num_drafts, seconds, modelled=modelled)

    def forget(self, sequence_id: int) -> None:
        """It has ended."""
        self._by_sequence.pop(sequence_id, None)

    def _of(self, sequence_id: int) -> OfSequence:
        return self._by_sequence.setdefault(sequence_id, OfSequence())

    def _rate(self, known: OfSequence, kind: int) -> float:
        prior = self._shared[kind].rate(SHARED_PRIOR, SHARED_WEIGHT)
        accepted = known.accepted.get(kind)
        return prior if accepted is None else accepted.rate(prior, PRIOR_WEIGHT)
