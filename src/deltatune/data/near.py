"""Near-duplicates: rows of validation or test whose input is nearly one of the training rows.

Two rows are near when their sketches overlap by J(a, b) = |a & b| / |a | b| >= t. Exact, by prefix filtering: of the
features of a row, rarest first, the first n - ceil(t n) + 1 must hold one of the other's (Chaudhuri et al. 2006).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence

from deltatune.core.task import Task
from deltatune.data.check import Placed

NEAR = 0.8


def near(
    train: Sequence[Placed], others: Mapping[str, Sequence[Placed]], task: Task
) -> list[tuple[str, Placed, Placed]]:
    """(name of the split, its row, the nearest training row), for every row that has one."""
    known = [frozenset(task.sketch(place.row)) for place in train]
    counts = Counter(feature for sketch in known for feature in sketch)
    holders: dict[Hashable, list[int]] = defaultdict(list)
    for index, sketch in enumerate(known):
        for feature in _prefix(sketch, counts):
            holders[feature].append(index)
    found = []
    for name, places in others.items():
        for place in places:
            sketch = frozenset(task.sketch(place.row))
            candidates = {index for feature in _prefix(sketch, counts) for index in holders.get(feature, ())}
            best = max(candidates, key=lambda index: jaccard(sketch, known[index]), default=None)
            if best is not None and jaccard(sketch, known[best]) >= NEAR:
                found.append((name, place, train[best]))
    return found


def jaccard(a: frozenset[Hashable], b: frozenset[Hashable]) -> float:
    """Shared features over all features; 0 for two empty sets.

    >>> jaccard(frozenset("abc"), frozenset("bcd"))
    0.5
    """
    return len(a & b) / max(1, len(a | b))


def _prefix(sketch: Collection[Hashable], counts: Mapping[Hashable, int]) -> list[Hashable]:
    """The rarest features, as many as can be missing from a near row, and one more."""
    ordered = sorted(sketch, key=lambda feature: (counts.get(feature, 0), repr(feature)))
    return ordered[: len(ordered) - math.ceil(NEAR * len(ordered)) + 1] if ordered else []
