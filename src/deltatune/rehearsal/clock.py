"""Clock: the seconds a rehearsal may take, and the share that is left to a check."""

import time


class Clock:
    """Starts when it is made."""

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self.started = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started

    def share(self, part: float) -> float:
        """Seconds for a check that may take this part of the budget, less when the time runs out."""
        return max(0.02 * self.budget_s, min(part * self.budget_s, self.budget_s - self.elapsed_s))


def affordable(seconds: float, each_s: float, least: int, most: int) -> int:
    """How many things of so many seconds each fit, within bounds.

    >>> affordable(10, 0.5, 4, 60), affordable(10, 50, 4, 60), affordable(10, 0, 4, 60)
    (20, 4, 60)
    """
    return max(least, min(most, int(seconds / each_s) if each_s > 0 else most))
