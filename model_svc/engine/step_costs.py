"""How long decode steps take on this machine, by how many sequences they hold, and what drafts add to that.

Learned from the steps that are made anyway; what lies back counts less and less. Knows counts and seconds; what drafts
are worth is `DraftLengths`' to say.
"""

from dataclasses import dataclass, field
from math import log2
from typing import NamedTuple

LEAST_PLAIN_STEPS = 2
"""Steps without drafts that are seen before it is said how long one takes."""
LEAST_WEIGHT = 0.1
"""What the latest step counts in the mean, against all before it."""
MOST_RISE = 1.5
"""A step counts at most this many times the mean: one that something else held up says little."""
MEMORY = 0.95
"""What a step with drafts counts in the sums, against the one after it."""
GUESS = 1 / 16
"""What a draft adds while nothing is known, in steps without any."""


class Added(NamedTuple):
    """Seconds that drafts add to a step."""

    per_row: float
    """For each row that has any."""
    per_draft: float
    """For each of them besides."""


@dataclass(slots=True)
class Sums:
    """Over steps with drafts, sums of products of: rows with drafts, drafts, and the seconds that they added."""

    rows_rows: float = 0.0
    rows_drafts: float = 0.0
    drafts_drafts: float = 0.0
    rows_added: float = 0.0
    drafts_added: float = 0.0

    def enter(self, num_rows: int, num_drafts: int, added_s: float) -> None:
        """Another step."""
        self.rows_rows = MEMORY * self.rows_rows + num_rows**2
        self.rows_drafts = MEMORY * self.rows_drafts + num_rows * num_drafts
        self.drafts_drafts = MEMORY * self.drafts_drafts + num_drafts**2
        self.rows_added = MEMORY * self.rows_added + num_rows * added_s
        self.drafts_added = MEMORY * self.drafts_added + num_drafts * added_s

    def fitted(self, guess: float) -> Added:
        """What explains them best, neither of it negative; where little is known, what a draft is guessed to add.

        Two steps count as if they had been seen, with one draft and with four.
        """
        rows_rows, rows_drafts, drafts_drafts = self.rows_rows + 2, self.rows_drafts + 5, self.drafts_drafts + 17
        rows_added, drafts_added = self.rows_added + 5 * guess, self.drafts_added + 17 * guess
        determinant = rows_rows * drafts_drafts - rows_drafts**2
        per_row = (rows_added * drafts_drafts - drafts_added * rows_drafts) / determinant
        per_draft = (drafts_added * rows_rows - rows_added * rows_drafts) / determinant
        if per_row < 0:
            return Added(0.0, max(0.0, drafts_added / drafts_drafts))
        if per_draft < 0:
            return Added(max(0.0, rows_added / rows_rows), 0.0)
        return Added(per_row, per_draft)


@dataclass(slots=True)
class Costs:
    """Of steps with about the same number of rows."""

    plain_s: float = 0.0
    """Mean of a step without drafts."""
    num_plain: int = 0
    since_plain: int = 0
    """Steps with drafts since the last one without."""
    looked_up: Sums = field(default_factory=Sums)
    modelled: Sums = field(default_factory=Sums)
    """Of steps for which a draft model was asked; these pay for it too."""


class StepCosts:
    """Costs by the number of rows."""

    def __init__(self) -> None:
        self._by_rows: dict[int, Costs] = {}

    def plain_s(self, num_rows: int) -> float | None:
        """Seconds of a step of so many rows without drafts; None: not known well enough."""
        costs = self._by_rows.get(kind_of(num_rows))
        return costs.plain_s if costs is not None and costs.num_plain >= LEAST_PLAIN_STEPS else None

    def since_plain(self, num_rows: int) -> int:
        """Steps of about so many rows, all with drafts, since the last one without."""
        costs = self._by_rows.get(kind_of(num_rows))
        return costs.since_plain if costs is not None else 0

    def added(self, num_rows: int, *, modelled: bool = False) -> Added:
        """What drafts add to a step of so many rows, whose `plain_s` is known; `modelled`: by a draft model."""
        costs = self._by_rows[kind_of(num_rows)]
        return (costs.modelled if modelled else costs.looked_up).fitted(GUESS * costs.plain_s)

    def observe(
        self, num_rows: int, num_drafted_rows: int, num_drafts: int, seconds: float, *, modelled: bool = False
    ) -> None:
        """A step of decodes alone took so long."""
        costs = self._by_rows.setdefault(kind_of(num_rows), Costs())
        if not num_drafts:
            costs.num_plain += 1
            costs.since_plain = 0
            if costs.num_plain > LEAST_PLAIN_STEPS:
                seconds = min(seconds, MOST_RISE * costs.plain_s)
            costs.plain_s += (seconds - costs.plain_s) * max(LEAST_WEIGHT, 1 / costs.num_plain)
            return
        costs.since_plain += 1
        added = self.added(num_rows, modelled=modelled)
        expected = costs.plain_s + num_drafted_rows * added.per_row + num_drafts * added.per_draft
        added_s = min(seconds, MOST_RISE * expected) - costs.plain_s
        (costs.modelled if modelled else costs.looked_up).enter(num_drafted_rows, num_drafts, added_s)


def kind_of(num_rows: int) -> int:
    """Equal for numbers of rows that cost about the same: a fifth more or less, and each small number by itself."""
    return num_rows if num_rows <= 8 else 20 + round(4 * log2(num_rows))
