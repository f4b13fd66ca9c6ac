"""Split: training, validation and test rows from one file, stratified and the same for the same seed."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

import numpy as np

from deltatune.core.labels import number, problem_of

T = TypeVar("T")


def split(items: Sequence[T], strata: Sequence[Any], shares: Sequence[float], seed: int) -> list[list[T]]:
    """Items in `len(shares) + 1` parts: what is left, then one part per share; every part in the original order.

    Each stratum is divided by the same shares; numbers are first binned into deciles, what occurs once is one stratum.

    >>> rest, part = split(list("abcdefghij"), [0, 1] * 5, [0.2], seed=0)
    >>> len(rest), len(part)
    (8, 2)
    """
    generator = np.random.default_rng(seed)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(_binned(strata)):
        groups[stratum].append(index)
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    owed = np.zeros(len(shares))  # what rounding has kept from each part so far
    for stratum in sorted(groups, key=repr):
        indices = generator.permutation(groups[stratum])
        start = 0
        for part, share in enumerate(shares):
            exact = share * len(indices) + owed[part]
            size = min(round(exact), len(indices) - start)
            owed[part] = exact - size
            parts[part + 1] += indices[start : start + size].tolist()
            start += size
        parts[0] += indices[start:].tolist()
    return [[items[index] for index in sorted(part)] for part in parts]


def sample(items: Sequence[T], size: int, seed: int) -> list[T]:
    """A seeded sample in the original order; all items when there are no more."""
    if size >= len(items):
        return list(items)
    chosen = np.random.default_rng(seed).choice(len(items), size, replace=False)
    return [items[index] for index in sorted(chosen.tolist())]


def _binned(strata: Sequence[Any]) -> list[Hashable]:
    """Many different numbers as deciles, else labels as they are or as tuples: those of a single row all as None.

    Of a stratum of one row the seed could draw nothing.
    """
    if strata and _are_measured(strata) and len(set(strata)) > 10:
        numbers = np.array([number(stratum) for stratum in strata], dtype=float)
        edges = np.quantile(numbers, np.linspace(0.1, 0.9, 9))
        bins: list[Hashable] = np.searchsorted(edges, numbers).tolist()
        return bins
    found = [_hashable(stratum) for stratum in strata]
    counts = Counter(found)
    return [stratum if counts[stratum] > 1 else None for stratum in found]


def _are_measured(strata: Sequence[Any]) -> bool:
    """Whether they are numbers and no classes; a CSV file has them as text."""
    return all(isinstance(stratum, float) for stratum in strata) or problem_of(strata) == "regression"


def _hashable(stratum: Any) -> Hashable:
    """Lists and mappings of labels as tuples."""
    if isinstance(stratum, dict):
        return tuple((name, str(mark)) for name, mark in sorted(stratum.items()))
    found: Hashable = tuple(sorted(stratum)) if isinstance(stratum, list) else stratum
    return found
