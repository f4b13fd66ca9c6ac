"""Rates: the learning rate of a method by successive halving (Jamieson & Talwalkar 2016), from what is known.

Rates lie half a decade apart around the method's own, exponent 0. The first rung tries three at a quarter of the
training, and goes on past the best as long as that stands at an edge; the second tries the best two at half of it.
A trial is never shorter than `LEAST_STEPS`: what a few steps tell is chance.
"""

from collections.abc import Mapping

APART = 10**0.5
FARTHEST = 4
"""Exponents beyond which no rate is tried: a factor of a hundred."""
SHARES = {1: 0.25, 2: 0.5}
"""Rung -> share of the training that its trials are given."""

LEAST_STEPS = 60

Scores = Mapping[int, float]
"""Exponent -> score, more is better; -inf where training diverged."""


def rate(centre: float, exponent: int) -> float:
    """The learning rate of an exponent, with three digits.

    >>> rate(1e-3, 1), rate(1e-3, -2)
    (0.00316, 0.0001)
    """
    return float(f"{centre * APART**exponent:.3g}")


def share(rung: int, steps: int) -> float:
    """Share of a training of so many steps that a trial of a rung is given.

    >>> share(1, 1000), share(1, 120), share(2, 50)
    (0.25, 0.5, 1.0)
    """
    return max(SHARES[rung], min(1.0, LEAST_STEPS / steps))


def first(known: Scores) -> list[int]:
    """Exponents that the first rung still has to try.

    >>> first({}), first({-1: 0.5, 0: 0.7, 1: 0.6}), first({-1: 0.5, 0: 0.7, 1: 0.8}), first({-1: 0.9, 0: 0.7, 1: 0.8})
    ([-1, 0, 1], [], [2], [-2])
    """
    missing = [exponent for exponent in (-1, 0, 1) if exponent not in known]
    if missing:
        return missing
    top = best(known)
    if top in (min(known), max(known)) and abs(top) < FARTHEST and known[top] > float("-inf"):
        return [top + (1 if top == max(known) else -1)]
    return []


def second(known: Scores) -> list[int]:
    """Exponents for the second rung: the best two of the first that did not diverge.

    >>> second({-1: 0.5, 0: 0.7, 1: 0.6}), second({-1: 0.5, 0: float("-inf"), 1: float("-inf")})
    ([0, 1], [-1])
    """
    alive = [exponent for exponent, score in known.items() if score > float("-inf")]
    return sorted(alive, key=lambda exponent: (-known[exponent], abs(exponent)))[:2]


def best(known: Scores) -> int:
    """The exponent of the best score, the nearer to the method's own rate where equal; 0 when none is known."""
    return min(known, key=lambda exponent: (-known[exponent], abs(exponent)), default=0)
