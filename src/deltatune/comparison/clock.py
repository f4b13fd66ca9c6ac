"""Clock: the budget of a comparison, what was spent of it, and what a run will take judged by those before it."""

import time
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

    @property
    def tuning(self) -> bool:
        """Whether there is time for trials of learning rates."""
        return self.budget is None or self.spent < TUNING * self.budget


def expected(seconds: dict[float, list[float]]) -> float | None:
    """Seconds of a whole run, from those of trials by their share of the training; None when there was none.

    A run that is whole counts as it is, a trial of a share of it as so much more.

    >>> expected({0.5: [10.0, 12.0], 1.0: [19.0]}), expected({0.25: [6.0]}), expected({})
    (19.0, 24.0, None)
    """
    if not seconds:
        return None
    share = max(seconds)
    return max(seconds[share]) / share
