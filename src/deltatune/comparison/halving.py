"""Halving: every method's learning rate by successive halving, breadth first (`rates.py` says which)."""

from collections.abc import Sequence

from deltatune.comparison import rates
from deltatune.comparison.choice import Choice
from deltatune.comparison.study import Contender, Study


def halve(study: Study, contenders: Sequence[Contender]) -> None:
    """Every entry at its own rate before any at others, all of these before one passes an edge, then the best again."""
    rungs = {one.entry.name: _Rungs(study, one) for one in contenders}
    waiting = [one for one in rungs.values() if one.tries(1, [0])]
    while waiting:
        waiting = [one for one in waiting if one.tries(1, rates.first(one.known[1]))]
    for one in rungs.values():
        one.tries(2, rates.second(one.known[1]))


class _Rungs:
    """The rates of one entry that were tried."""

    def __init__(self, study: Study, contender: Contender) -> None:
        self.study, self.contender = study, contender
        self.known: dict[int, dict[int, float]] = {1: {}, 2: {}}
        """Rung -> exponent of the rate -> score, more is better."""

    def tries(self, rung: int, exponents: Sequence[int]) -> bool:
        """Tries these rates; false when there was nothing to try, or no time."""
        share = rates.share(rung, self.study.steps)
        if rung > 1 and share == rates.share(rung - 1, self.study.steps):
            return False  # as long as those that are known
        return all([self._try(rung, exponent, share) for exponent in exponents]) and bool(exponents)

    def _try(self, rung: int, exponent: int, share: float) -> bool:
        entry = self.contender.entry
        name = f"{entry.name}-rung{rung}-{_word(exponent)}"
        tried = self.study.tries(self.contender, name, Choice(rates.rate(entry.centre, exponent)), share)
        if tried is not None:
            self.known[rung][exponent] = tried.score
        return tried is not None


def _word(exponent: int) -> str:
    """An exponent as part of a name.

    >>> _word(-2), _word(0), _word(1)
    ('down2', 'same', 'up1')
    """
    return "same" if exponent == 0 else f"{'up' if exponent > 0 else 'down'}{abs(exponent)}"
