"""Choice: the learning rate and the size that a method is trained with, and the best of those that were tried."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Choice:
    """What is tried of a method."""

    rate: float
    """Learning rate."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Settings that differ from the entry's."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A choice and what it came to."""

    choice: Choice
    share: float
    """Of the training that it was given."""
    score: float
    """On the validation rows, more is better; -inf where training diverged."""


def best(tried: Sequence[Tried], own: Choice) -> Choice:
    """The best of the longest trials, of equal ones the nearest to the method's own; this, when all diverged.

    >>> own, other = Choice(1e-3), Choice(1e-2)
    >>> best([Tried(own, 0.25, 0.7), Tried(other, 0.25, 0.8)], own).rate
    0.01
    >>> best([Tried(own, 0.5, 0.7), Tried(other, 0.25, 0.8)], own).rate
    0.001
    """
    return next(iter(leading(tried, own, 1)), own)


def leading(tried: Sequence[Tried], own: Choice, number: int) -> list[Choice]:
    """So many of the best of the longest trials; a choice that diverged in any trial is out."""
    diverged = [one.choice for one in tried if one.score == -math.inf]
    alive = [one for one in tried if one.choice not in diverged]
    longest = max((one.share for one in alive), default=0.0)
    known = [one for one in alive if one.share == longest]
    return [one.choice for one in sorted(known, key=lambda one: (-one.score, _far(one.choice, own)))[:number]]


def _far(choice: Choice, own: Choice) -> float:
    return abs(math.log(choice.rate / own.rate)) + (choice.changes != own.changes)
