"""Near-duplicates: rows of validation or test whose input is nearly one of the training rows.

Two rows are near when their sketches overlap by J(a, b) = |a & b| / |a | b| >= t. Exact, by prefix filtering: of the
features of a row, rarest first, the first n - ceil(t n) + 1 must hold one of the other's (Chaudhuri et al. 2006). What
passes the filter is compared as sparse rows at once: features of images are in half of all rows and filter little.
"""

import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

import numpy as np
from scipy import sparse

from deltatune.core.task import Task
from deltatune.data.check import Placed

NEAR = 0.8
NONE = np.array([], np.int32)


def near(
    train: Sequence[Placed], others: Mapping[str, Sequence[Placed]], task: Task
) -> list[tuple[str, Placed, Placed]]:
    """(name of the split, its row, the nearest training row), for every row that has one."""
    known = Sketches(frozenset(task.sketch(place.row)) for place in train)
    found = []
    for name, places in others.items():
        for place in places:
            nearest, overlap = known.nearest(frozenset(task.sketch(place.row)))
            if overlap >= NEAR:
                found.append((name, place, train[nearest]))
    return found


class Sketches:
    """The features of many rows as numbers, to find the nearest row of another; the features go as they come."""

    def __init__(self, sketches: Iterable[Collection[Hashable]]) -> None:
        self.places: dict[Hashable, int] = {}
        """Feature -> its number."""
        numbers = [self._numbered(sketch) for sketch in sketches]
        self.sizes = np.array([len(own) for own in numbers], np.int64)
        columns = np.concatenate([NONE, *numbers], dtype=np.int32)
        starts, shape = np.concatenate([[0], self.sizes.cumsum()]), (len(numbers), len(self.places))
        self.rows = sparse.csr_array((np.ones(len(columns), np.int32), columns, starts), shape)
        rarest_first = np.argsort(np.bincount(columns, minlength=len(self.places)), kind="stable")
        self.ranks = np.empty(len(self.places), np.int32)
        self.ranks[rarest_first] = np.arange(len(self.places))
        firsts = [self._prefix(own, len(own)) for own in numbers]
        ranks = np.concatenate([NONE, *firsts], dtype=np.int32)
        rows = np.repeat(np.arange(len(firsts), dtype=np.int32), [len(own) for own in firsts])
        self.holders = rows[np.argsort(ranks, kind="stable")]
        """Rows that have a feature in their prefix, those of the rarest feature first."""
        self.begins = np.concatenate([[0], np.bincount(ranks, minlength=len(self.places)).cumsum()])

    def nearest(self, sketch: Collection[Hashable]) -> tuple[int, float]:
        """The row with the largest overlap, if that is `NEAR` or more, and the overlap; else any row that is less.

        >>> Sketches(["abc", "bcdefghij", "xyz"]).nearest("abcdefghij")
        (1, 0.9)
        """
        known = np.array([self.places[feature] for feature in sketch if feature in self.places], np.int64)
        passed = np.zeros(len(self.sizes), bool)
        for rank in self._prefix(known, len(sketch)):
            passed[self.holders[self.begins[rank] : self.begins[rank + 1]]] = True
        if not passed.any():
            return 0, 0.0
        candidates = np.flatnonzero(passed)
        asked = np.zeros(len(self.places), np.int32)
        asked[known] = 1
        few = len(candidates) < len(passed) // 4  # picking rows out copies them
        shared = self.rows[candidates] @ asked if few else (self.rows @ asked)[candidates]
        overlaps = shared / (self.sizes[candidates] + len(sketch) - shared)
        best = int(overlaps.argmax())
        return int(candidates[best]), float(overlaps[best])

    def _numbered(self, sketch: Collection[Hashable]) -> np.ndarray:
        places = (self.places.setdefault(feature, len(self.places)) for feature in sketch)
        return np.fromiter(places, np.int32, len(sketch))

    def _prefix(self, known: np.ndarray, size: int) -> np.ndarray:
        """The rarest features by rank, as many as can be missing from a near row, and one more.

        Of `size` features those that are not `known` are the rarest: no row has them.
        """
        most = size - math.ceil(NEAR * size) + 1 if size else 0
        found: np.ndarray = np.sort(self.ranks[known])[: max(0, most - (size - len(known)))]
        return found
