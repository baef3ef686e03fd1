"""Which of the tiers below are passed over because requests to them fail: within a limit, and never all.

Asks breakers; does not know what is chosen by among the rest.
"""

from collections.abc import Sequence
from math import ceil
from typing import Protocol, TypeVar

from tokenwire.routing.breaker import Breaker


class Breakable(Protocol):
    """Whatever has a breaker."""

    breaker: Breaker
    """Whether requests to it fail."""


B = TypeVar("B", bound=Breakable)


def without_failing(connected: Sequence[B], max_ejected_share: float) -> list[B]:
    """Those that take requests, in their order.

    At most `max_ejected_share` of them, rounded up, are left out, and never all; where more should be, those whose
    pause ends first are used.
    """
    failing = [each for each in connected if not each.breaker.admits]
    if not failing:
        return list(connected)
    most = min(len(connected) - 1, ceil(len(connected) * max_ejected_share))
    failing.sort(key=lambda each: -each.breaker.wait_s)
    ejected = failing[:most]
    return [each for each in connected if each not in ejected]


def not_on_trial(among: Sequence[B]) -> Sequence[B]:
    """Without those that another request is just trying out, where there are others."""
    return [each for each in among if not each.breaker.is_on_trial] or among
