"""Clock: the budget of a comparison, what was spent of it, and what a run will take judged by those before it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

TUNING = 0.4
"""Share of the budget after which no further rates are tried."""


@dataclass
class Clock:
    """Seconds; those of earlier processes come from the ledger."""

    budget: float | None
    """None: no limit."""
    before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def spent(self) -> float:
        """Since the comparison began, in all its processes."""
        return self.before + time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Of the budget."""
        return float("inf") if self.budget is None else self.budget - self.spent

    def tunes(self, seconds: float) -> bool:
        """Whether a trial of a learning rate that takes so long still fits into the time for tuning."""
        return self.budget is None or self.spent + seconds <= TUNING * self.budget


def expected(seconds: Mapping[float, list[float]], share: float) -> float:
    """Seconds of a share of the training, from trials of other shares; 0 when there was none.

    Of those that are known, the longest are the surest.

    >>> expected({0.5: [10.0, 12.0], 1.0: [19.0]}, 1.0), expected({0.25: [6.0]}, 0.5), expected({}, 1.0)
    (19.0, 12.0, 0.0)
    """
    longest = max(seconds, default=None)
    return 0.0 if longest is None else max(seconds[longest]) * share / longest
